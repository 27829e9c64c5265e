"""How the time of one piece of work divides into named parts."""

import contextlib
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch

from benchmarks.measure import synchronise

REST = "rest"


class Stopwatch:
    """Seconds of the parts of each lap; a part within another counts for itself alone.

    Every change of part waits for the device, so that a lap takes a little longer than the work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: list[dict[str, float]] = []
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def lap(self) -> Iterator[None]:
        """Time one run of the work; what no part covers is its rest."""
        self.laps.append(defaultdict(float))
        with self.part(REST):
            yield

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Book the time of the block on ``name``."""
        self._book()
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Let every call of ``work`` be a part."""

        @functools.wraps(work)
        def run(*arguments: Any, **settings: Any) -> Any:
            with self.part(name):
                return work(*arguments, **settings)

        return run

    @contextlib.contextmanager
    def watching(self, calls: Mapping[str, list[tuple[Any, str]]]) -> Iterator[None]:
        """Time functions where they are looked up, within the block.

        Args:
            calls: part -> (module or object, name of its function).
        """
        with contextlib.ExitStack() as stack:
            for part, places in calls.items():
                for owner, name in places:
                    work = self.timed(part, getattr(owner, name))
                    stack.enter_context(mock.patch.object(owner, name, work))
            yield

    def split(self, skipped: int = 1) -> list[dict[str, Any]]:
        """Median seconds and share of every part, the largest first.

        Args:
            skipped: laps at the start that warm up.
        """
        laps = self.laps[skipped:]
        names = {name for lap in laps for name in lap}
        medians = {name: statistics.median(lap.get(name, 0.0) for lap in laps) for name in names}
        whole = sum(medians.values())
        return [
            {"part": name, "median": medians[name], "share": medians[name] / whole}
            for name in sorted(medians, key=lambda name: -medians[name])
        ]

    def _book(self) -> None:
        synchronise(self.device)
        now = time.perf_counter()
        if self._open:
            self.laps[-1][self._open[-1]] += now - self._since
        self._since = now
