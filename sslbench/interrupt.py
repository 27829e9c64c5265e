"""Signals that ask a run to stop: it finishes its step, saves, and the same command continues."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sslbench.lock import born

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C, and what schedulers send
SECONDS_BETWEEN_LOOKS = 1.0  # of a worker, at whether its parent lives


class StopRequest:
    """Whether a signal asked to stop. A second one stops at once, as does one within ``now``."""

    def __init__(self) -> None:
        self.asked = False
        self._at_once = False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Take the signals over for the block; only the main thread may."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self._hear)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def now(self) -> Iterator[None]:
        """Stop at once within the block, or before it: for work that keeps its own parts."""
        self._at_once = True
        if self.asked:  # while it did not listen
            self._at_once = False
            raise KeyboardInterrupt
        try:
            yield
        finally:
            self._at_once = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._at_once or self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def held_back() -> Iterator[None]:
    """Let this thread take no signal within the block, and a process that starts in it none ever.

    Ctrl-C and schedulers signal every process of a run: a loader worker that dies of it would take
    the run with it before it has saved.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_only(worker: int = 0) -> None:
    """Let a worker process end by a signal of its parent or with it, and by nobody else's.

    A parent that is killed tells its workers nothing, and one that has made more than a pipe holds
    would wait for its reader for ever: each holds the reading end itself.

    Args:
        worker: its number, which loaders pass and nobody needs.
    """
    maker = multiprocessing.parent_process()
    assert maker is not None and maker.pid is not None, "not called in a worker"
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_with, args=(maker.pid,), daemon=True).start()


def _end_with(parent: int) -> None:
    began = born(parent)  # which tells it from a later process with its number
    while began and born(parent) == began:
        heard = signal.sigtimedwait(SIGNALS, SECONDS_BETWEEN_LOOKS)
        if heard is not None and heard.si_pid == parent:
            break
    os._exit(0)  # at once: the other threads may be waiting for ever
