"""Numbers that two independent implementations of the method agree on."""

import math

import pytest
import torch

from pretrain.config import CyborgsConfig, LARSConfig, ScheduleConfig
from pretrain.correspondence import corresponding_cells
from pretrain.lars import LARS
from pretrain.losses.detcon import Targets, detcon_loss
from pretrain.losses.vmf import vmf_distance
from pretrain.pooling import majority_labels
from pretrain.schedule import lr_at, target_rate_at


def _vectors(shift: float) -> torch.Tensor:
    return torch.sin(0.7 * torch.arange(24, dtype=torch.float64) + shift).view(2, 3, 4)


def _two_way(ids_one: list[list[int]], ids_two: list[list[int]]) -> torch.Tensor:
    ids = torch.tensor(ids_one), torch.tensor(ids_two)
    anchors = _vectors(0.1), _vectors(0.5)
    targets = Targets.gather(_vectors(0.9), ids[0]), Targets.gather(_vectors(1.3), ids[1])
    parts = [
        detcon_loss(anchors[a], ids[a], targets[a], targets[b], 0.1).loss
        for a, b in ((0, 1), (1, 0))
    ]
    return parts[0] + parts[1]


@pytest.mark.parametrize(
    ("ids_one", "ids_two", "expected"),
    [
        ([[0, 1, 1], [2, 3, 4]], [[1, 0, 5], [4, 4, 7]], 13.634646701249931),
        ([[9] * 3] * 2, [[9] * 3] * 2, 6.0904414983372),
        ([[0] * 3] * 2, [[1] * 3] * 2, 0.0),
    ],
)
def test_contrastive_loss(ids_one, ids_two, expected):
    assert _two_way(ids_one, ids_two).item() == pytest.approx(expected, abs=1e-9)


def test_majority_labels():
    labels = torch.tensor([[5, 5, 3, 3], [7, 7, 3, 3], [9, 1, 200, 200], [1, 1, 200, 200]])
    assert majority_labels(labels[None].byte(), 2).tolist() == [[[5, 3], [1, 200]]]


def test_vmf_distance():
    pixels = torch.cos(0.9 * torch.arange(15, dtype=torch.float64)).view(5, 3)
    prototypes = torch.cos(1.7 * torch.arange(6, dtype=torch.float64) + 0.3).view(2, 3)
    owner = torch.tensor([1, 0, 1, 0, 1])
    loss = vmf_distance(pixels, prototypes, owner, kappa=10.0).mean()
    assert loss.item() == pytest.approx(0.01646264729681725, abs=1e-12)


@pytest.mark.parametrize(
    ("flip", "columns"),
    [(True, [-1, -1, -1, 6, 5, 4, 3]), (False, [-1, -1, -1, 0, 1, 2, 3])],
)
def test_corresponding_cells(flip, columns):
    boxes = torch.tensor([[0, 0, 224, 224]]).double(), torch.tensor([[100, 0, 224, 224]]).double()
    flips = torch.tensor([False]), torch.tensor([flip])
    cells = corresponding_cells(boxes[0], flips[0], boxes[1], flips[1], (7, 7))
    assert cells[0, :7].tolist() == columns
    assert (cells >= 0).sum() == 28


def test_target_rate():
    rates = [target_rate_at(CyborgsConfig(), step / 1000) for step in (0, 250, 500, 750, 1000)]
    assert rates == pytest.approx([0.996, 0.9965857864, 0.998, 0.9994142136, 1], abs=1e-10)


def test_lars():
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    optimizer = LARS([weight], lr=0.1, weight_decay=0.1)
    for lr, expected in (
        (0.1, [2.9995221104991527, 3.999852957076662]),
        (0.05, [2.9990681347972585, 3.99971327224531]),
    ):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        optimizer.step()
        assert weight.detach()[0].tolist() == pytest.approx(expected, abs=1e-13)


def test_learning_rate():
    elapsed = (0, 5, 10, 767.9, 768, 784)
    rates = [lr_at(LARSConfig(), ScheduleConfig(), 64, epochs) for epochs in elapsed]
    assert rates == pytest.approx([0.001, 0.0505, 0.1, 0.1, 0.01, 0.001], abs=1e-12)
    assert math.isclose(lr_at(LARSConfig(), ScheduleConfig(), 128, 10), 0.2)
