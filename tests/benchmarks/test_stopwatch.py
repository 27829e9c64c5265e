"""Parts of a lap: each second is booked once, on the innermost part."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import stopwatch
from benchmarks.stopwatch import REST, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when told to."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now.seconds)
    return now


def test_a_part_within_another_counts_for_itself_alone(clock):
    watch = Stopwatch(torch.device("cpu"))
    with watch.lap():
        clock.seconds += 1
        with watch.part("outer"):
            clock.seconds += 2
            with watch.part("inner"):
                clock.seconds += 4
            clock.seconds += 8
        clock.seconds += 16
    assert watch.laps == [{REST: 17, "outer": 10, "inner": 4}]


def test_functions_are_timed_where_they_are_looked_up_and_restored(clock):
    def wait(seconds):
        clock.seconds += seconds
        return "waited"

    owner, watch = SimpleNamespace(work=wait), Stopwatch(torch.device("cpu"))
    for seconds in (50, 7, 5, 6):  # the first lap warms up
        with watch.lap(), watch.watching({"waiting": [(owner, "work")]}):
            assert owner.work(seconds) == "waited"
            clock.seconds += 2
    assert owner.work is wait
    assert watch.split() == [
        {"part": "waiting", "median": 6, "share": 0.75},
        {"part": REST, "median": 2, "share": 0.25},
    ]
