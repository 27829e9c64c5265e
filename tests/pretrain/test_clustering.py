"""The clustering-consistency loss: its sign, its minimum, its geometry and its groups."""

import functools
import math

import pytest
import torch

from pretrain.losses.clustering import (
    Geometry,
    Prototypes,
    cluster,
    collapsed_loss,
    consistency_loss,
    image_groups,
    make_pulls,
    monitors,
    pull_loss,
    rows,
)
from pretrain.losses.euclidean import euclidean_distance
from pretrain.losses.vmf import vmf_distance
from pretrain.masks.kmeans import KMeans

VMF = functools.partial(vmf_distance, kappa=10.0)


def _geometry(num_images: int, box=(0, 0, 32, 32), flip: bool = False) -> Geometry:
    return Geometry(
        torch.tensor([box] * num_images, dtype=torch.float64), torch.tensor([flip] * num_images)
    )


def _maps(seed: int, images: int = 2) -> torch.Tensor:
    return torch.randn(images, 6, 4, 4, generator=torch.Generator().manual_seed(seed))


def _cluster(maps: torch.Tensor, k: int = 3, seed: int = 0) -> Prototypes:
    return cluster(maps, k, torch.Generator().manual_seed(seed), KMeans(iterations=5))


def test_a_step_moves_cells_towards_their_own_prototypes():
    maps = _maps(0)
    prototypes = _cluster(maps)
    online = maps.clone().requires_grad_()

    def own_cosine(values):
        rows = values.flatten(2).transpose(1, 2).flatten(0, 1)
        own = prototypes.centers_KD[prototypes.owner_BP.flatten()]
        return torch.cosine_similarity(rows, own).mean().item()

    loss = consistency_loss([online, online], [prototypes] * 2, [_geometry(2)] * 2, VMF)
    loss.backward()
    assert own_cosine((online - 0.1 * online.grad).detach()) > own_cosine(maps)


@pytest.mark.parametrize("k", [2, 8, 50])
def test_a_collapsed_map_costs_log_k_and_is_no_minimum(k: int):
    maps = torch.ones(4, 6, 4, 4)
    prototypes = _cluster(maps, k)
    loss = consistency_loss([maps, maps], [prototypes] * 2, [_geometry(4)] * 2, VMF)
    assert loss.item() == pytest.approx(4 * math.log(k), rel=1e-2)
    pulls = make_pulls([prototypes] * 2, [_geometry(4)] * 2, (4, 4))
    assert collapsed_loss(pulls) == pytest.approx(4 * math.log(k))


def test_equal_crops_and_prototypes_make_inter_equal_to_intra():
    maps, prototypes = _maps(1), _cluster(_maps(1))
    both = [maps, maps], [prototypes] * 2, [_geometry(2)] * 2
    rows = maps.flatten(2).transpose(1, 2).flatten(0, 1)
    intra = VMF(rows, prototypes.centers_KD, prototypes.owner_BP.flatten()).mean()
    assert consistency_loss(*both, VMF).item() == pytest.approx(4 * intra.item(), rel=1e-6)


def test_a_flipped_view_is_matched_by_the_geometry():
    """The second view is the first one mirrored: with the geometry known nothing changes."""
    maps, prototypes = _maps(2), _cluster(_maps(2))
    mirrored = maps.flip(3)
    owner = prototypes.owner_BP.view(2, 4, 4).flip(2).flatten(1)
    flipped = Prototypes(prototypes.centers_KD, owner)
    plain = consistency_loss([maps, maps], [prototypes] * 2, [_geometry(2)] * 2, VMF)
    geometry = [_geometry(2), _geometry(2, flip=True)]
    warped = consistency_loss([maps, mirrored], [prototypes, flipped], geometry, VMF)
    assert warped.item() == pytest.approx(plain.item(), rel=1e-6)


def test_views_without_overlap_keep_the_intra_terms_only():
    maps, prototypes = _maps(3), _cluster(_maps(3))
    apart = [_geometry(2), _geometry(2, box=(100, 100, 32, 32))]
    loss = consistency_loss([maps, maps], [prototypes] * 2, apart, VMF)
    together = consistency_loss([maps, maps], [prototypes] * 2, [_geometry(2)] * 2, VMF)
    assert loss.item() == pytest.approx(together.item() / 2, rel=1e-6)


@pytest.mark.parametrize("aligned", [True, False])
def test_the_parts_of_a_group_add_up_to_it(aligned: bool):
    maps, prototypes = _maps(8, images=5), [_cluster(_maps(i, images=5), seed=i) for i in (8, 9)]
    geometry = [_geometry(5), _geometry(5, box=(9, 3, 25, 30))]
    whole = consistency_loss([maps, maps], prototypes, geometry, VMF, aligned=aligned)
    pulls = make_pulls(prototypes, geometry, (4, 4), aligned=aligned)
    parts = [
        pull_loss(pull, rows(maps)[part], part, VMF)
        for pull in pulls
        for part in (slice(0, 2), slice(2, 5))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


def test_prototypes_receive_no_gradient():
    target = _maps(4).requires_grad_()
    online = _maps(5).requires_grad_()
    prototypes = _cluster(target)
    consistency_loss([online, online], [prototypes] * 2, [_geometry(2)] * 2, VMF).backward()
    assert target.grad is None
    assert online.grad is not None


def test_nearest_mode_is_at_most_the_aligned_inter_term():
    maps, prototypes = _maps(6), [_cluster(_maps(6)), _cluster(_maps(7), seed=1)]
    places = [_geometry(2)] * 2
    nearest = consistency_loss([maps, maps], prototypes, places, VMF, aligned=False)
    assert nearest <= consistency_loss([maps, maps], prototypes, places, VMF, aligned=True)


def test_negated_logits_would_give_the_other_sign():
    """The sign of the released code: a regression test that the two are told apart."""
    pixels = torch.cos(0.9 * torch.arange(15, dtype=torch.float64)).view(5, 3)
    prototypes = torch.cos(1.7 * torch.arange(6, dtype=torch.float64) + 0.3).view(2, 3)
    wrong = vmf_distance(pixels, -prototypes, torch.tensor([1, 0, 1, 0, 1]), 10.0).mean()
    assert wrong.item() == pytest.approx(4.645805550260391, abs=1e-12)


def test_euclidean_distance_is_two_minus_two_cosines():
    pixels, prototypes = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0]])
    distance = euclidean_distance(pixels, prototypes, torch.tensor([0, 0]))
    assert distance.tolist() == pytest.approx([2.0, 2 - math.sqrt(2)])


@pytest.mark.parametrize(
    ("num_images", "expected"),
    [(16, [(0, 8), (8, 16)]), (19, [(0, 8), (8, 19)]), (8, [(0, 8)]), (5, [(0, 5)])],
)
def test_a_remainder_joins_the_last_group(num_images, expected):
    assert [(g.start, g.stop) for g in image_groups(num_images, 8)] == expected


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_means_what_the_clustering_means(metric):
    """Cells of very different norms, drawn to the other view's nearest centre, by loops."""
    maps = [_maps(seed) * torch.rand(2, 1, 4, 4).mul(9).add(0.5) for seed in (9, 10)]
    rule = KMeans(5, metric)
    made = [cluster(m, 4, torch.Generator().manual_seed(n), rule) for n, m in enumerate(maps)]
    pulls = make_pulls(made, [_geometry(2)] * 2, (4, 4), aligned=False, metric=metric)
    for pull in (pull for pull in pulls if pull.owner_BP is None):
        centers = pull.centers_KD
        expected = 0.0
        for cell in rows(maps[pull.view]).flatten(0, 1):
            if metric == "euclidean":
                owner = min(range(4), key=lambda k: (cell - centers[k]).norm().item())
            else:
                owner = max(range(4), key=lambda k: (cell @ centers[k]).item())
            expected += VMF(cell[None], centers, torch.tensor([owner])).item() / 32
        loss = pull_loss(pull, rows(maps[pull.view]), slice(0, 2), VMF)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_clustering_says_how_close_its_cells_are_and_what_is_empty():
    points = torch.eye(4)[:2].repeat(8, 1).T.reshape(1, 4, 4, 4)  # two directions in 16 cells
    watched = monitors(_cluster(points, k=4))
    assert watched["own_cosine"].item() == pytest.approx(1)
    assert watched["empty_clusters"].item() == 0.5
