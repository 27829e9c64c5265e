"""Signals that ask a run to stop: it finishes its step, saves, and the same command continues."""

import signal
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
        """Stop at once within the block: for work that keeps its own parts."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._at_once or self.asked:
            raise KeyboardInterrupt
        self.asked = True
