"""Signals: when a run stops, and what loader workers do."""

import multiprocessing
import signal
import subprocess
import sys
import threading
import time

import pytest

from sslbench.interrupt import SIGNALS, StopRequest, held_back, obey_parent_only


def _work(ready) -> None:
    obey_parent_only()
    ready.set()
    time.sleep(60)


def _start_worker() -> multiprocessing.Process:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=_work, args=(ready,), daemon=True)
    with held_back():
        worker.start()
    assert ready.wait(30)
    return worker


def test_a_worker_survives_the_signals_of_others():
    worker = _start_worker()
    try:
        for number in SIGNALS:
            send = f"import os; os.kill({worker.pid}, {int(number)})"
            subprocess.run([sys.executable, "-c", send], check=True, timeout=60)
        worker.join(0.3)
        assert worker.is_alive()
    finally:
        worker.kill()
        worker.join()


def test_a_worker_ends_when_its_parent_asks():
    worker = _start_worker()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


def test_a_signal_that_is_held_back_arrives_afterwards():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    try:
        with held_back():
            # To this thread: one sent to the process might be taken by another thread of it.
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            assert not heard
        assert heard == [1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_stop_asked_before_work_that_stops_at_once_is_obeyed():
    request = StopRequest()
    request.asked = True
    with pytest.raises(KeyboardInterrupt), request.now():
        pytest.fail("the work began")
