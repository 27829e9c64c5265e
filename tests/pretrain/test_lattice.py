"""The permutohedral lattice against sums over all pairs."""

import numpy as np
import pytest

from pretrain.masks.lattice import Lattice, _simplices


def points(count: int, dimensions: int, spread: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, spread, (count, dimensions)).astype(np.float32)


def gaussian(points_NF: np.ndarray) -> np.ndarray:
    return np.exp(-((points_NF[:, None] - points_NF) ** 2).sum(2) / 2)


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_a_point_is_the_weighted_mean_of_its_corners(dimensions):
    from pretrain.masks.lattice import _elevation

    points_NF = points(500, dimensions, 4.0)
    keys_NCF, weights_NC = _simplices(points_NF)
    assert weights_NC.min() > -1e-5
    assert np.allclose(weights_NC.sum(1), 1, atol=1e-5)
    elevated_NC = points_NF @ _elevation(dimensions + 1)
    mean_NF = (weights_NC[..., None] * keys_NCF).sum(1)
    assert np.allclose(mean_NF, elevated_NC[:, :-1], atol=1e-3)


@pytest.mark.parametrize(("dimensions", "spread", "least"), [(2, 3.0, 0.999), (5, 1.0, 0.995)])
def test_filtering_is_a_gaussian_sum_up_to_a_constant(dimensions, spread, least):
    points_NF = points(1500, dimensions, spread)
    values_NL = np.random.default_rng(1).random((1500, 3))
    made = Lattice(points_NF).filter(values_NL)
    expected = gaussian(points_NF) @ values_NL
    assert np.corrcoef(made.ravel(), expected.ravel())[0, 1] > least


def test_distant_points_do_not_meet():
    points_NF = np.array([[0.0, 0.0], [50.0, 0.0]], np.float32)
    made = Lattice(points_NF).filter(np.array([[1.0], [0.0]]))
    assert made[0, 0] > 0
    assert made[1, 0] == 0


def test_the_own_weight_is_what_comes_back():
    lattice = Lattice(points(400, 5, 0.7))
    returned_N = lattice.filter(np.eye(400)).diagonal()
    ratio_N = returned_N / lattice.own_weight()
    assert ratio_N.max() < 1 + 1e-4  # no way is counted that does not exist on a full lattice
    assert ratio_N.mean() > 0.95


def test_a_lone_point_gets_back_at_least_three_quarters_of_its_own_weight():
    alone = [Lattice(point_1F) for point_1F in points(300, 5, 3.0)[:, None]]
    returned = np.array([lattice.filter(np.ones((1, 1))).item() for lattice in alone])
    ratios = returned / np.array([lattice.own_weight().item() for lattice in alone])
    assert 0.75 < ratios.min() < 0.8
    assert ratios.mean() == pytest.approx(0.82, abs=0.01)


def test_a_distance_that_no_index_holds_is_refused():
    far = np.array([[0.0] * 5, [1e6] * 5], np.float32)
    with pytest.raises(ValueError, match="too far"):
        Lattice(far)
