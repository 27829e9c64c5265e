"""Which cell shows what, against one cell at a time."""

import math

import pytest
import torch

from pretrain.correspondence import corresponding_cells


def slow_cell(i, j, size, box, flip, other_box, other_flip):
    """Follow the centre of one cell into the image and into the other view."""
    h, w = size
    u, v = (j + 0.5) / w, (i + 0.5) / h
    u = 1 - u if flip else u
    x, y = box[0] + u * box[2], box[1] + v * box[3]
    u, v = (x - other_box[0]) / other_box[2], (y - other_box[1]) / other_box[3]
    if not (0 <= u < 1 and 0 <= v < 1):
        return -1
    u = 1 - u if other_flip else u
    return min(math.floor(v * h), h - 1) * w + min(math.floor(u * w), w - 1)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_loops(seed: int):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.randint(1, 60, (2, 4, 4), generator=generator).double()
    flips = torch.rand(2, 4, generator=generator) < 0.5
    cells = corresponding_cells(boxes[0], flips[0], boxes[1], flips[1], (3, 5))
    for b in range(4):
        for p in range(15):
            args = boxes[0, b].tolist(), flips[0, b], boxes[1, b].tolist(), flips[1, b]
            assert cells[b, p].item() == slow_cell(p // 5, p % 5, (3, 5), *args)


def test_a_view_corresponds_to_itself():
    box, flip = torch.tensor([[3.0, 4, 50, 60]]).double(), torch.tensor([True])
    assert corresponding_cells(box, flip, box, flip, (4, 4))[0].tolist() == list(range(16))


def test_views_apart_share_nothing():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).double(), torch.tensor([[10.0, 0, 10, 10]]).double()
    no = torch.tensor([False])
    assert (corresponding_cells(boxes[0], no, boxes[1], no, (4, 4)) == -1).all()
