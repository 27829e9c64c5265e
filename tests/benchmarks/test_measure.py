"""Fair timing: turns that alternate, and an interval that assumes no distribution."""

import pytest
import torch

from benchmarks.measure import interleaved, median_with_interval


def test_variants_take_turns_and_every_other_turn_goes_backwards():
    ran: list[str] = []
    variants = {name: lambda name=name: ran.append(name) for name in "ab"}
    seconds = interleaved(variants, 3, torch.device("cpu"))
    assert "".join(ran) == "ba" + "ab" + "ba" + "ab"  # the first turn is not timed
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_the_interval_of_a_median_is_that_of_its_order_statistics():
    # of 15 values the 4th and the 12th hold the median in 96.5 % of all samples
    found = median_with_interval([float(n) for n in range(15, 0, -1)])
    assert found == {"median": 8.0, "low": 4.0, "high": 12.0}


def test_the_interval_covers_the_median_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(2000, 21, generator=generator).tolist()
    intervals = [median_with_interval(sample) for sample in samples]
    covered = sum(i["low"] <= 0 <= i["high"] for i in intervals) / len(intervals)
    assert covered == pytest.approx(0.973, abs=0.012) and covered > 0.95
