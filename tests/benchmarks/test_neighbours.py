"""Figures of how features are spread, where they are known."""

import math

import pytest
import torch

from benchmarks.neighbours import effective_rank, maximum, middle, share_within, whiten


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_whitened_features_have_unit_covariance_whatever_they_were_scaled_by(generator):
    """Cosines between them do not change with an invertible linear map of the features."""
    train, test = torch.randn(2, 50, 4, generator=generator, dtype=torch.float64)
    mixing = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    plain, mixed = whiten(train, test, 4), whiten(train @ mixing + 3, test @ mixing + 3, 4)
    covariance = plain[0].T @ plain[0] / len(train)
    assert torch.allclose(covariance, torch.eye(4, dtype=torch.float64))
    assert torch.allclose(mixed[1] @ mixed[0].T, plain[1] @ plain[0].T)


def test_a_channel_that_never_varies_is_not_blown_up(generator):
    train, test = torch.randn(2, 50, 4, generator=generator)
    train[:, 3] = 1.0
    assert whiten(train, test, 4)[1].shape == (50, 3)
    assert whiten(train, test, 4)[1].abs().max() < 10


@pytest.mark.parametrize("spread", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.0), (5.0, 0.0, 0.0)])
def test_the_effective_rank_is_the_exponential_of_the_entropy(spread):
    directions = torch.tensor(spread, dtype=torch.float64).diag()
    features = torch.cat([directions, -directions]) + 7  # uncorrelated, of these deviations
    shares = [s * s / sum(t * t for t in spread) for s in spread]
    expected = math.exp(-sum(p * math.log(p) for p in shares if p))
    assert effective_rank(features) == pytest.approx(expected)


def test_variance_lies_within_images_that_are_equal_and_between_images_that_are_flat(generator):
    one = torch.rand(1, 3, 2, 2, generator=generator)
    assert share_within(one.expand(5, -1, -1, -1)) == pytest.approx(1)
    assert share_within(torch.rand(5, 3, 1, 1, generator=generator).expand(-1, -1, 2, 2)) == 0


def test_pooling_takes_the_largest_and_the_middle_cell():
    maps = torch.arange(9.0).view(1, 1, 3, 3).flip(2)
    assert maximum(maps).item() == 8 and middle(maps).item() == 4
