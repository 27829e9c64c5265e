"""Signals: when a run stops, and what loader workers do."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

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


PARENT = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from sslbench.loading import made_ahead

def fill(item):
    print(os.getpid(), flush=True)
    return bytes(300_000)  # a pipe holds 65,536

served = made_ahead(fill, range(9), 1)
next(served)
time.sleep(60)
"""


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _ends(pid: int) -> bool:
    """Whether it does within 20 seconds."""
    end = time.monotonic() + 20
    while _is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not _is_alive(pid)


def test_a_worker_that_nobody_reads_from_ends_with_its_killed_parent():
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", PARENT, str(root)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    told = [int(parent.stdout.readline()) for _ in range(2)]  # it now makes what nobody takes
    worker = told[-1]
    time.sleep(0.5)  # until it waits for a reader
    try:
        parent.kill()
        parent.wait()
        assert _ends(worker)
    finally:
        if _is_alive(worker):
            os.kill(worker, signal.SIGKILL)
        parent.stdout.close()


def _orphan(pids) -> None:
    maker = multiprocessing.parent_process().pid
    while _is_alive(maker):
        time.sleep(0.01)
    pids.put(os.getpid())
    pids.close()
    pids.join_thread()
    obey_parent_only()
    time.sleep(60)


def _start_an_orphan(pids) -> None:
    multiprocessing.get_context("fork").Process(target=_orphan, args=(pids,)).start()
    os._exit(0)


def test_a_worker_whose_parent_died_before_it_looked_ends():
    context = multiprocessing.get_context("fork")
    pids = context.Queue()
    context.Process(target=_start_an_orphan, args=(pids,)).start()
    worker = pids.get(timeout=30)
    try:
        assert _ends(worker)
    finally:
        if _is_alive(worker):
            os.kill(worker, signal.SIGKILL)


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
