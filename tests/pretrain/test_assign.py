"""Nearest centres: the first of equals, in bounded memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.masks import assign
from pretrain.masks.assign import nearest


def rows(count, seed, channels=16):
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))


def test_of_equal_centres_the_first_is_taken():
    assert nearest(rows(100, 4), rows(40, 5).repeat(2, 1)).max() < 40


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_chunks_change_no_label(metric, monkeypatch):
    points, centers = rows(1000, 0), rows(30, 1)
    whole = nearest(points, centers, metric)
    monkeypatch.setitem(assign.CHUNK_NUMBERS, "cpu", 64)  # two points at a time
    assert torch.equal(nearest(points, centers, metric), whole)
    if metric == "euclidean":
        assert torch.equal(whole, torch.cdist(points, centers).argmin(dim=1))


class _Largest(TorchDispatchMode):
    """Remembers the largest number of numbers that an operation made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.numel())
        return made


def test_no_more_similarities_than_a_chunk_exist_at_a_time(monkeypatch):
    monkeypatch.setitem(assign.CHUNK_NUMBERS, "cpu", 4096)
    points, centers = rows(3000, 8, channels=4), rows(64, 9, channels=4)
    with _Largest() as largest:
        nearest(points, centers)
    assert largest.numbers == 4096
