"""Signals that ask a run to stop: it finishes its step, saves, and the same command continues."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C, and what schedulers send


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
    """Let a worker process end by a signal of its parent, and by nobody else's.

    Args:
        worker: its number, which loaders pass and nobody needs.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_when_parent_asks, daemon=True).start()


def _end_when_parent_asks() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)
