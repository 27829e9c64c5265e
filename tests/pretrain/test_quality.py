"""The adjusted Rand index, and instance maps painted from annotations."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from sklearn.metrics import adjusted_rand_score

from pretrain.masks.cells import enlarge
from pretrain.masks.quality import adjusted_rand_index, instance_map
from sslbench.datasets import Object, Record


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn(seed: int):
    generator = np.random.default_rng(seed)
    ours, truth = generator.integers(0, 7, 500), generator.integers(-1, 4, 500)
    truth[:200] = ours[:200]
    expected = adjusted_rand_score(truth, ours)
    assert adjusted_rand_index(ours, truth) == pytest.approx(expected, abs=1e-12)


def test_names_of_labels_do_not_matter():
    truth = np.array([[0, 0, 1], [2, 2, 1]])
    assert adjusted_rand_index(np.array([[5, 5, 9], [1, 1, 9]]), truth) == 1


def test_one_segment_for_everything_scores_zero():
    assert adjusted_rand_index(np.zeros(6, int), np.array([0, 0, 1, 1, 2, 2])) == 0


def test_two_trivial_partitions_agree():
    assert adjusted_rand_index(np.zeros(4, int), np.full(4, 3)) == 1


def _object(box, area, *, crowd=False, segmentation=None):
    return Object(0, box, area, crowd, False, segmentation, 1)


def test_objects_are_painted_small_over_large_and_crowds_are_left_out(tmp_path):
    code = coco_mask.encode(np.asfortranarray(np.eye(8, dtype=np.uint8)))
    square = [[5.0, 5.0, 7.0, 5.0, 7.0, 7.0, 5.0, 7.0]]
    objects = (
        _object((5, 5, 7, 7), 4, segmentation=square),
        _object((0, 0, 8, 8), 8, crowd=True, segmentation={**code}),
        _object((4, 0, 8, 8), 32),
    )
    painted = instance_map(Record(1, tmp_path / "x.jpg", 8, 8, objects))
    assert (painted[5:7, 5:7] == 3).all()
    assert painted[0, 7] == 1
    assert painted[0, 0] == -1
    assert painted[7, 0] == 0


def test_cells_grow_to_eight_pixels():
    grown = enlarge(np.array([[1, 2], [3, 4]], np.uint8), 16, 16)
    assert np.array_equal(grown, np.kron([[1, 2], [3, 4]], np.ones((8, 8), int)))


def test_a_partial_last_cell_keeps_its_share():
    grown = enlarge(np.array([[0, 1]], np.uint8), 8, 12)
    assert grown.shape == (8, 12)
    assert np.array_equal(np.unique(grown), [0, 1])
