"""Sampling, Eq. 3 and the whole step against slow loops in float64 that follow the definitions."""

import dataclasses
import functools
import math

import pytest
import torch
from torch import Tensor

from pretrain.data import Batch
from pretrain.estimate import synthetic_batch
from pretrain.losses.clustering import Geometry, Prototypes, consistency_loss
from pretrain.losses.vmf import vmf_distance
from pretrain.methods.cyborgs import Cyborgs, build
from pretrain.plan import EpochPlan
from pretrain.pooling import sample_ids
from tests.pretrain.test_correspondence import slow_cell
from tests.pretrain.test_detcon import slow_loss
from tests.pretrain.test_pooling import slow_majority

KAPPA = 10.0
PLAN = EpochPlan(refresh_masks=False, contrast=True, clustering_weight=0.1, clusters=(3, 3))


def slow_sample(cells: Tensor, uniforms: Tensor) -> Tensor:
    """Number the present ids from the smallest and pick by the share that a number falls into."""
    ids = torch.zeros(uniforms.shape, dtype=torch.long)
    for image in range(len(cells)):
        present = sorted(set(cells[image].flatten().tolist()))
        for slot, uniform in enumerate(uniforms[image].tolist()):
            for place, name in enumerate(present):
                if place / len(present) <= uniform < (place + 1) / len(present):
                    ids[image, slot] = name
    return ids


def slow_distance(pixel: list[float], centers: list[list[float]], owner: int) -> float:
    """Eq. 4 for one cell: minus the logarithm of a softmax, number by number."""
    logits = [KAPPA * _cosine(pixel, center) for center in centers]
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[owner]


def slow_consistency(
    online: list[Tensor], prototypes: list[Prototypes], geometry: list[Geometry]
) -> float:
    """The four terms of Eq. 3, cell by cell."""
    images, _, height, width = online[0].shape
    total = 0.0
    for own, other in ((0, 1), (1, 0)):
        intra, inter = [], []
        for b in range(images):
            places = [
                (g.box_B4[b].tolist(), bool(g.flip_B[b])) for g in (geometry[own], geometry[other])
            ]
            for i in range(height):
                for j in range(width):
                    pixel = online[own][b, :, i, j].tolist()
                    centers, owners = prototypes[own].centers_KD, prototypes[own].owner_BP
                    owner = int(owners[b, i * width + j])
                    intra.append(slow_distance(pixel, centers.tolist(), owner))
                    there = slow_cell(i, j, (height, width), *places[0], *places[1])
                    if there >= 0:
                        centers, owners = prototypes[other].centers_KD, prototypes[other].owner_BP
                        owner = int(owners[b, there])
                        inter.append(slow_distance(pixel, centers.tolist(), owner))
        total += sum(intra) / len(intra) + (sum(inter) / len(inter) if inter else 0.0)
    return total


def slow_contrast(method: Cyborgs, batch: Batch) -> float:
    """Eq. 1 and 2 for a whole batch; only the networks are the method's own."""
    grid, layers = method.cfg.contrast_grid, list(method.contrast_layers)
    ids, anchors, targets = [], [], []
    for view in batch.views:
        cells = torch.stack([slow_majority(labels, grid) for labels in view.labels_BSS])
        ids.append(slow_sample(cells, view.uniforms_BR))
        for branch, made in ((method.online, anchors), (method.target, targets)):
            maps = branch.backbone.maps(view.images_B3SS, layers)
            fused = torch.cat([_slow_resize(maps[layer], grid) for layer in layers], dim=1)
            made.append(branch.projector(_slow_pool(fused, cells, ids[-1])))
        anchors[-1] = method.online.predictor(anchors[-1])
    return sum(
        slow_loss(anchors[own], ids[own], targets[own], ids[own], targets[other], ids[other], 0.1)
        for own, other in ((0, 1), (1, 0))
    )


def _slow_resize(values: Tensor, grid: int) -> Tensor:
    """Average blocks of a fine map; a coarse one grows as torch's bilinear resize makes it."""
    size = values.shape[-1]
    if size < grid:
        return torch.nn.functional.interpolate(values, (grid, grid), mode="bilinear")
    block = size // grid
    rows = [
        [
            values[:, :, i * block : (i + 1) * block, j * block : (j + 1) * block].mean((2, 3))
            for j in range(grid)
        ]
        for i in range(grid)
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _slow_pool(features: Tensor, cells: Tensor, ids: Tensor) -> Tensor:
    return torch.stack(
        [
            torch.stack([features[b][:, cells[b] == name].mean(dim=1) for name in ids[b]])
            for b in range(len(ids))
        ]
    )


def _cosine(first: list[float], second: list[float]) -> float:
    norms = [math.sqrt(sum(x * x for x in vector)) for vector in (first, second)]
    return sum(a * b for a, b in zip(first, second, strict=True)) / (norms[0] * norms[1])


@pytest.mark.parametrize("seed", range(5))
def test_sampling_agrees_with_the_loops(seed: int):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint([1, 3, 20, 256, 256][seed], (6, 7, 7), generator=generator)
    uniforms = torch.rand(6, 16, generator=generator, dtype=torch.float64)
    assert torch.equal(sample_ids(cells, uniforms), slow_sample(cells, uniforms))


@pytest.mark.parametrize("seed", range(5))
def test_the_four_terms_of_the_clustering_loss_agree_with_the_loops(seed: int):
    generator = torch.Generator().manual_seed(seed)
    online = [torch.randn(3, 5, 4, 3, generator=generator).double() for _ in range(2)]
    boxes = torch.randint(1, 50, (2, 3, 4), generator=generator).double()
    flips = torch.rand(2, 3, generator=generator) < 0.5
    prototypes = [
        Prototypes(
            torch.randn(4, 5, generator=generator).double(),
            torch.randint(4, (3, 12), generator=generator),
        )
        for _ in range(2)
    ]
    geometry = [Geometry(box, flip) for box, flip in zip(boxes, flips, strict=True)]
    distance = functools.partial(vmf_distance, kappa=KAPPA)
    loss = consistency_loss(online, prototypes, geometry, distance)
    assert loss.item() == pytest.approx(slow_consistency(online, prototypes, geometry), abs=1e-9)


@pytest.fixture
def batch(tiny) -> Batch:
    made = synthetic_batch(build(tiny).view_spec, 4, torch.device("cpu"))
    boxes = torch.tensor([[0, 0, 30, 20], [5, 9, 40, 40], [7, 7, 9, 9], [0, 1, 64, 48]]).double()
    geometry = [
        Geometry(boxes, torch.tensor([False, True, True, False])),
        Geometry(boxes.flip(0), torch.tensor([True, True, False, False])),
    ]
    views = (
        dataclasses.replace(view, images_B3SS=view.images_B3SS.double(), geometry=place)
        for view, place in zip(made.views, geometry, strict=True)
    )
    return dataclasses.replace(made, views=tuple(views))


def test_a_whole_steps_contrast_agrees_with_the_loops(tiny, batch):
    output = _terms(build(tiny).double(), batch)
    with torch.no_grad():
        expected = slow_contrast(build(tiny).double(), batch)
    assert output["contrast"].item() == pytest.approx(expected, abs=1e-9)
    assert expected > 1


def test_a_whole_steps_clustering_agrees_with_the_loops(tiny, batch, monkeypatch):
    """Prototypes are the step's own; that online maps, places and groups meet is what is tested."""
    method, made = build(tiny).double(), []
    original = method.consistency.cluster

    def watching(*arguments):
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(method.consistency, "cluster", watching)
    output = _terms(method, batch)
    layer = method.clustering_layer
    with torch.no_grad():
        fresh = build(tiny).double().online.backbone
        maps = [fresh.maps(view.images_B3SS, [layer])[layer] for view in batch.views]
    groups = [slice(0, 2), slice(2, 4)]
    losses = [
        slow_consistency(
            [m[group] for m in maps], prototypes, [view.geometry[group] for view in batch.views]
        )
        for group, prototypes in zip(groups, made, strict=True)
    ]
    assert output["clustering"].item() == pytest.approx(0.1 * sum(losses) / 2, abs=1e-9)


def _terms(method: Cyborgs, batch: Batch) -> dict[str, Tensor]:
    (part,) = batch.parts(1)
    return method(part, method.prepare([part], PLAN), PLAN).terms
