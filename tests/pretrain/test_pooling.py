"""Cells, sampled ids and pooled vectors against loops."""

from collections import Counter

import pytest
import torch

from pretrain.pooling import (
    majority_labels,
    merge_ids,
    pool,
    sample_different_ids,
    sample_ids,
)


def slow_majority(labels, grid):
    """Count every cell by hand; the smallest of the most frequent labels wins."""
    size = labels.shape[0] // grid
    out = torch.zeros(grid, grid, dtype=torch.long)
    for i in range(grid):
        for j in range(grid):
            cell = labels[i * size : (i + 1) * size, j * size : (j + 1) * size].flatten().tolist()
            counts = Counter(cell)
            out[i, j] = min(counts, key=lambda label: (-counts[label], label))
    return out


@pytest.mark.parametrize("num_ids", [2, 5, 256])
def test_majority_agrees_with_the_loops(num_ids: int):
    generator = torch.Generator().manual_seed(num_ids)
    labels = torch.randint(num_ids, (3, 12, 12), generator=generator, dtype=torch.uint8)
    expected = torch.stack([slow_majority(one, 3) for one in labels])
    assert torch.equal(majority_labels(labels, 3), expected)


def test_ids_above_eighty_survive_to_the_pooled_vectors():
    cells = torch.tensor([[[200, 3], [3, 3]]])
    features = torch.arange(4.0).view(1, 1, 2, 2)
    assert pool(features, cells, torch.tensor([[200, 3]])).flatten().tolist() == [0.0, 2.0]


def test_grid_that_does_not_divide_the_map_is_refused():
    with pytest.raises(ValueError, match="no 3x3 grid of equal cells"):
        majority_labels(torch.zeros(1, 8, 8, dtype=torch.uint8), 3)


def test_sampled_ids_are_present_and_each_present_one_is_reached_equally():
    cells = torch.tensor([[[7, 7], [7, 200]], [[0, 255], [3, 4]]])
    uniforms = torch.rand(2, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = sample_ids(cells, uniforms)
    assert set(ids[0].tolist()) == {7, 200}
    assert set(ids[1].tolist()) == {0, 255, 3, 4}
    # By mask, not by area: 200 owns one cell of four, yet half of the draws.
    assert (ids[0] == 200).double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_a_number_just_below_one_takes_the_last_id():
    assert sample_ids(torch.tensor([[[1, 5]]]), torch.tensor([[1 - 1e-16, 0.0]])).tolist() == [
        [5, 1]
    ]


def test_pooling_agrees_with_the_loops():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 5, 3, 3, generator=generator).double()
    cells = torch.randint(4, (2, 3, 3), generator=generator)
    ids = torch.randint(5, (2, 6), generator=generator)  # 4 is absent: its vector is zero
    pooled = pool(features, cells, ids)
    for b in range(2):
        for r in range(6):
            inside = [
                features[b, :, i, j]
                for i in range(3)
                for j in range(3)
                if cells[b, i, j] == ids[b, r]
            ]
            expected = torch.stack(inside).mean(0) if inside else torch.zeros(5).double()
            assert torch.allclose(pooled[b, r], expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_different_ids_agree_with_the_loops(seed: int):
    """Present ids in the order of their random numbers, then absent ones in theirs."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(9, (3, 2, 2), generator=generator)
    uniforms = torch.rand(3, 9, generator=generator, dtype=torch.float64)
    ids = sample_different_ids(cells, uniforms, num_sampled=6)
    for b in range(3):
        present = set(cells[b].flatten().tolist())
        order = sorted(range(9), key=lambda i: (i not in present, uniforms[b, i].item()))
        assert ids[b].tolist() == order[:6]


def test_an_absent_mask_pools_to_zero():
    cells, features = torch.zeros(1, 2, 2, dtype=torch.long), torch.ones(1, 3, 2, 2)
    ids = sample_different_ids(cells, torch.rand(1, 5), num_sampled=2)
    assert ids[0, 0] == 0
    assert pool(features, cells, ids)[0].tolist() == [[1, 1, 1], [0, 0, 0]]


def test_merging_turns_high_ids_into_zero_and_leaves_256_alone():
    labels = torch.tensor([[[3, 80], [81, 255]]], dtype=torch.uint8)
    assert merge_ids(labels, 81).tolist() == [[[3, 80], [0, 0]]]
    assert merge_ids(labels, 256) is labels
