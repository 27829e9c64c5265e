"""The dense CRF against loops that follow its definition, and what it does to pictures."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.masks import crf
from pretrain.masks.cells import cell_colours
from pretrain.masks.crf import mean_field, refine


def slow_mean_field(unary, colours):
    """One pair of cells at a time, in Python's own numbers."""
    h, w, _ = colours.shape
    cells = [(8.0 * y, 8.0 * x, colours[y, x].tolist()) for y in range(h) for x in range(w)]

    def near(a, b):
        return math.exp(-((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / 2)

    def alike(a, b):
        place = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (2 * 67**2)
        colour = sum((p - q) ** 2 for p, q in zip(a[2], b[2], strict=True)) / (2 * 3**2)
        return math.exp(-place - colour)

    pairs = [[0.0] * len(cells) for _ in cells]
    for weight, kernel in ((3, near), (4, alike)):
        raw = [[kernel(a, b) for b in cells] for a in cells]
        sums = [sum(row) for row in raw]
        for i in range(len(cells)):
            for j in range(len(cells)):
                if i != j:
                    pairs[i][j] += weight * raw[i][j] / math.sqrt(sums[i] * sums[j])

    unary = unary.tolist()
    num_labels = len(unary[0])

    def normalised(energies):
        total = sum(math.exp(-e) for e in energies)
        return [math.exp(-e) / total for e in energies]

    posterior = [normalised(row) for row in unary]
    for _ in range(10):
        updated = []
        for i in range(len(cells)):
            # Potts: a label pays what all cells that differ from it send.
            energies = [
                unary[i][label]
                + sum(
                    pairs[i][j] * posterior[j][other]
                    for j in range(len(cells))
                    for other in range(num_labels)
                    if other != label
                )
                for label in range(num_labels)
            ]
            updated.append(normalised(energies))
        posterior = updated
    return posterior


def _random_case(h=4, w=5, labels=3):
    generator = torch.Generator().manual_seed(0)
    unary = 2 * torch.rand(h * w, labels, generator=generator, dtype=torch.float64)
    colours = 100 + 12 * torch.rand(h, w, 3, generator=generator, dtype=torch.float64)
    return unary, colours


def test_mean_field_agrees_with_the_loops():
    unary, colours = _random_case()
    expected = torch.tensor(slow_mean_field(unary, colours), dtype=torch.float64)
    made = mean_field(unary, colours)
    assert (made - expected).abs().max() < 1e-6
    assert (made - F.softmax(-unary, dim=1)).abs().max() > 0.05  # it did change something


@pytest.mark.parametrize(("name", "value"), [("CHUNK_CELLS", 7), ("KEPT_CELLS", 0)])
def test_chunks_and_what_is_kept_change_nothing(name, value, monkeypatch):
    unary, colours = _random_case()
    whole = mean_field(unary, colours)
    monkeypatch.setattr(crf, name, value)
    assert (mean_field(unary, colours) - whole).abs().max() < 1e-12


def test_the_same_input_gives_the_same_bytes():
    unary, colours = (value.float() for value in _random_case(20, 20, 5))
    assert torch.equal(mean_field(unary, colours), mean_field(unary, colours))


def _blobs(labels_hw, prototypes, strength):
    """Points that lie nearest to their label's prototype, by a margin that ``strength`` sets."""
    others = prototypes.mean(0)
    points = strength * prototypes[labels_hw.flatten()] + (1 - strength) * others
    return F.normalize(points, dim=1)


def test_confident_labels_stay_on_a_constant_image():
    labels_hw = torch.zeros(12, 12, dtype=torch.long)
    labels_hw[:, 6:] = 2
    prototypes = torch.eye(3)
    colours = torch.full((12, 12, 3), 128.0)
    points = _blobs(labels_hw, prototypes, 1.0)
    assert torch.equal(
        refine(points, prototypes, labels_hw.flatten(), colours), labels_hw.flatten()
    )


def test_a_lone_wrong_cell_in_a_noisy_two_colour_image_is_corrected():
    generator = torch.Generator().manual_seed(1)
    truth_hw = torch.zeros(20, 20, dtype=torch.long)
    truth_hw[:, 10:] = 1
    colours = torch.where(truth_hw[..., None] == 0, 60.0, 180.0)
    colours = colours + torch.randn(20, 20, 3, generator=generator)
    labels_hw = truth_hw.clone()
    labels_hw[5, 4] = 1
    prototypes = torch.eye(2)
    refined = refine(_blobs(labels_hw, prototypes, 0.2), prototypes, labels_hw.flatten(), colours)
    assert torch.equal(refined.reshape(20, 20), truth_hw)


@pytest.mark.parametrize("seed", range(5))
def test_no_label_appears_that_was_not_there(seed):
    generator = torch.Generator().manual_seed(seed)
    prototypes = F.normalize(torch.rand(40, 6, generator=generator), dim=1)
    points = F.normalize(torch.rand(80, 6, generator=generator), dim=1)
    labels = torch.tensor([3, 17, 39])[torch.randint(3, (80,), generator=generator)]
    colours = 255 * torch.rand(8, 10, 3, generator=generator)
    assert set(refine(points, prototypes, labels, colours).tolist()) <= {3, 17, 39}


def test_a_cell_has_the_mean_colour_of_its_pixels():
    image = np.arange(9 * 20 * 3, dtype=np.uint8).reshape(9, 20, 3)
    made = cell_colours(image)
    assert made.shape == (2, 3, 3)
    assert made[0, 0] == pytest.approx(image[:4, :7].mean((0, 1)))  # 9 rows in 2, 20 columns in 3
    assert made[1, 2] == pytest.approx(image[4:, 13:].mean((0, 1)))
