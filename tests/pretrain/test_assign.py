"""Nearest centres: the screened search finds what the plain one finds, in bounded memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.masks import assign
from pretrain.masks.assign import ROUNDING, nearest, nearest_of_unit


def unit(rows, seed, channels=16):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, channels, generator=generator), dim=1)


def in_bfloat16(points, centers):
    """What hardware with bfloat16 products may compute."""
    return points.bfloat16().float() @ centers.bfloat16().float().T


def test_rounded_products_lie_within_the_bound():
    points, centers = unit(2000, 0), unit(300, 1)
    error = (in_bfloat16(points, centers) - points @ centers.T).abs().max()
    assert ROUNDING / 20 < error < ROUNDING


def test_doubtful_points_are_decided_in_full_precision(monkeypatch):
    monkeypatch.setattr(assign, "rounded_products", in_bfloat16)
    points, centers = unit(5000, 2), unit(200, 3)
    expected = nearest(points, centers)
    assert not torch.equal(in_bfloat16(points, centers).max(dim=1).indices, expected)
    assert torch.equal(nearest_of_unit(points, centers), expected)


def test_of_equal_centres_the_first_is_taken(monkeypatch):
    points = unit(100, 4)
    centers = unit(40, 5).repeat(2, 1)
    for find in (nearest, nearest_of_unit):
        assert find(points, centers).max() < 40


def test_the_precision_of_products_is_left_as_it_was():
    before = torch.get_float32_matmul_precision()
    nearest_of_unit(unit(64, 6), unit(64, 7))
    assert torch.get_float32_matmul_precision() == before


class _Largest(TorchDispatchMode):
    """Remembers the largest number of numbers that an operation made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.numel())
        return made


@pytest.mark.parametrize("find", [nearest, nearest_of_unit])
def test_no_more_similarities_than_a_chunk_exist_at_a_time(find, monkeypatch):
    monkeypatch.setitem(assign.CHUNK_NUMBERS, "cpu", 4096)
    points, centers = unit(3000, 8, channels=4), unit(64, 9, channels=4)
    with _Largest() as largest:
        find(points, centers)
    assert largest.numbers <= 4096
