"""The dense CRF over pixels against the exact one of the cells' grid, at one pixel a cell."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.masks import crf, crf_pixels
from pretrain.masks.cells import enlarge, majority
from pretrain.masks.crf_pixels import pixel_mean_field, refine_by_features, refine_by_labels


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray]:
    """Three noisy stripes (40 x 60), and their labels at stride 8, a column of cells off."""
    generator = np.random.default_rng(0)
    truth_HW = np.repeat([[0, 1, 2]], 40, axis=0).repeat(20, axis=1)
    colours = np.array([[60, 60, 70], [150, 90, 60], [70, 160, 90]])
    image_HW3 = colours[truth_HW] + generator.normal(0, 2.5, (40, 60, 3))
    return image_HW3.clip(0, 255).astype(np.uint8), truth_HW


def cells_of(truth_HW: np.ndarray) -> np.ndarray:
    return majority(truth_HW).astype(np.uint8)


def test_pixels_agree_with_the_exact_mean_field(scene, monkeypatch):
    image_HW3, truth_HW = scene
    cells = torch.from_numpy(cells_of(truth_HW)).long()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(3, cells.shape, generator=generator)
    cells = torch.where(torch.rand(cells.shape, generator=generator) < 0.7, cells, noise)
    unary_3hw = -torch.log(0.1 + 0.7 * F.one_hot(cells, 3).permute(2, 0, 1))
    unary_3HW = F.interpolate(unary_3hw[None], (40, 60), mode="bilinear")[0]
    monkeypatch.setattr(crf, "CELL", 1)
    exact_N3 = crf.mean_field(
        unary_3HW.flatten(1).T.double(), torch.from_numpy(image_HW3.astype(np.float64))
    ).numpy()
    made_N3 = pixel_mean_field(unary_3HW.permute(1, 2, 0).numpy(), image_HW3).reshape(-1, 3)
    before_N = unary_3HW.argmin(0).flatten().numpy()
    changed = (exact_N3.argmax(1) != before_N).mean()
    assert changed > 0.05
    assert (exact_N3.argmax(1) == made_N3.argmax(1)).mean() > 0.98
    assert abs(exact_N3 - made_N3).mean() < 0.02
    assert np.allclose(made_N3.sum(1), 1, atol=1e-5)


def test_borders_move_from_the_cells_to_the_colours(scene):
    image_HW3, truth_HW = scene
    labels_hw = cells_of(truth_HW)
    blocks_HW = enlarge(labels_hw, 40, 60)
    refined_HW = refine_by_labels(labels_hw, image_HW3)
    assert (blocks_HW != truth_HW).mean() > 0.05
    assert (refined_HW != truth_HW).mean() < 0.01


def test_a_stored_label_counts_for_seven_tenths_and_the_others_share_the_rest(monkeypatch):
    seen = []
    monkeypatch.setattr(
        crf_pixels, "pixel_mean_field", lambda unary_HWL, _: seen.append(unary_HWL) or -unary_HWL
    )
    labels_hw = np.array([[5, 9], [9, 200]], np.uint8)
    refine_by_labels(labels_hw, np.zeros((16, 16, 3), np.uint8))
    corners = np.exp(-seen[0][[0, 0, -1, -1], [0, -1, 0, -1]])  # beyond the cells' centres
    assert corners == pytest.approx(
        np.array([[0.7, 0.15, 0.15], [0.15, 0.7, 0.15], [0.15, 0.7, 0.15], [0.15, 0.15, 0.7]])
    )


def test_features_that_say_what_the_labels_say_move_borders_too(scene):
    image_HW3, truth_HW = scene
    labels_hw = cells_of(truth_HW)
    prototypes_KD = torch.eye(3)
    points_ND = F.normalize(prototypes_KD[labels_hw.flatten().tolist()] + 0.5, dim=1)
    refined_HW = refine_by_features(labels_hw, points_ND, prototypes_KD, image_HW3)
    assert (refined_HW != truth_HW).mean() < 0.02


def test_no_label_appears_that_was_not_there():
    generator = np.random.default_rng(0)
    labels_hw = generator.choice([3, 17, 250], (4, 5)).astype(np.uint8)
    image_HW3 = generator.integers(0, 256, (27, 40, 3), dtype=np.uint8)
    assert set(np.unique(refine_by_labels(labels_hw, image_HW3))) <= {3, 17, 250}


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (5, 7)])
def test_an_image_of_one_cell_keeps_its_label(size):
    image_HW3 = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    refined_HW = refine_by_labels(np.full((1, 1), 9, np.uint8), image_HW3)
    assert refined_HW.shape == size
    assert (refined_HW == 9).all()
