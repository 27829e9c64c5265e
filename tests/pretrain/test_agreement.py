"""Measures of agreement against slow loops, values worked out by hand, and what must not matter."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from pretrain.masks import agreement as measures
from pretrain.masks.agreement import Annotated, agreement
from sslbench.datasets import IGNORED


def patchwork(seed: int, count: int, size: tuple[int, int] = (14, 17)) -> np.ndarray:
    """Regions that hang together: every pixel belongs to the nearest of ``count`` points."""
    generator = np.random.default_rng(seed)
    centres = generator.random((count, 2)) * size
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    return ((places[:, :, None] - centres) ** 2).sum(-1).argmin(-1)


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A map and an annotation that have something in common; a corner is ignored."""
    truth = patchwork(seed, 4)
    ours = patchwork(seed + 100, 9) + 20 * (truth == 2)
    truth[:4, :5] = IGNORED
    return ours, truth


def of(ours: np.ndarray, truth: np.ndarray, objects=None) -> measures.Agreement:
    objects = frozenset(range(1, int(truth.max()) + 1)) if objects is None else objects
    return agreement(ours, Annotated.of(truth, objects))


def slow_iou(one: np.ndarray, other: np.ndarray) -> float:
    common = either = 0
    for a, b in zip(one.ravel(), other.ravel(), strict=True):
        common, either = common + (a and b), either + (a or b)
    return common / either


def slow_ious(ours, truth) -> dict[tuple[int, int], float]:
    counted = truth != IGNORED
    segments, regions = np.unique(ours[counted]), np.unique(truth[counted])
    return {
        (s, r): slow_iou((ours == s) & counted, truth == r)
        for s, r in itertools.product(segments, regions)
    }


def neighbours(labels, counted):
    """Pairs of places of counted pixels, side by side or one above the other."""
    height, width = labels.shape
    for y, x in itertools.product(range(height), range(width)):
        for v, u in ((y, x + 1), (y + 1, x)):
            if v < height and u < width and counted[y, x] and counted[v, u]:
                yield (y, x), (v, u)


def slow_merge(ours, counted, num_groups) -> np.ndarray:
    """Merge on the map itself: count again after every merger."""
    ours = ours.copy()
    ours[~counted] = -1
    while len(names := [n for n in dict.fromkeys(ours.ravel().tolist()) if n >= 0]) > num_groups:
        sizes = {name: int((ours == name).sum()) for name in names}
        smallest = min(names, key=sizes.get)
        border = dict.fromkeys(names, 0)
        for one, other in neighbours(ours, counted):
            around = {ours[one], ours[other]}
            if smallest in around and len(around) == 2:
                border[(around - {smallest}).pop()] += 1
        border.pop(smallest)
        sizes.pop(smallest)
        longest = max(border, key=border.get)
        ours[ours == smallest] = longest if border[longest] else max(sizes, key=sizes.get)
    return ours


@pytest.mark.parametrize("seed", range(5))
def test_rand_index_agrees_with_scikit_learn(seed: int):
    ours, truth = pair(seed)
    counted = truth != IGNORED
    expected = adjusted_rand_score(truth[counted], ours[counted])
    assert of(ours, truth).ari == pytest.approx(expected, abs=1e-12)


def test_rand_index_counts_pairs_of_pixels():
    ours, truth = np.array([[0, 0, 1, 1, 1]]), np.array([[0, 0, 0, 1, 1]])
    together = {name: [a == b for a, b in itertools.combinations(labels.ravel(), 2)]
                for name, labels in (("ours", ours), ("truth", truth))}  # fmt: skip
    both = sum(a and b for a, b in zip(*together.values(), strict=True))
    a, b = sum(together["ours"]), sum(together["truth"])
    expected = a * b / 10
    assert of(ours, truth).ari == pytest.approx((both - expected) / ((a + b) / 2 - expected))


def test_one_segment_for_everything_has_rand_index_zero():
    assert of(np.zeros((2, 3), int), np.array([[0, 0, 1], [1, 2, 2]])).ari == 0


def test_two_trivial_partitions_agree():
    found = of(np.full((2, 2), 3), np.zeros((2, 2), int))
    assert (found.ari, found.hungarian_miou, found.majority_miou) == (1, 1, 1)
    assert math.isnan(found.best_overlap)
    assert math.isnan(found.boundary_recall)


@pytest.mark.parametrize("seed", range(4))
def test_best_overlap_takes_for_each_object_the_best_segment(seed: int):
    ours, truth = pair(seed)
    ious = slow_ious(ours, truth)
    best = [max(v for (_, r), v in ious.items() if r == region) for region in (1, 2, 3)]
    assert of(ours, truth).best_overlap == pytest.approx(np.mean(best))


@pytest.mark.parametrize("seed", range(4))
def test_hungarian_is_the_best_of_all_matchings_of_the_merged_map(seed: int):
    ours, truth = pair(seed)
    ious = slow_ious(slow_merge(ours, truth != IGNORED, 4), truth)
    groups = sorted({s for s, _ in ious})
    assert len(groups) == 4
    best = max(
        sum(ious[g, r] for r, g in enumerate(order)) for order in itertools.permutations(groups)
    )
    assert of(ours, truth).hungarian_miou == pytest.approx(best / 4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_groups", [1, 3, 7])
def test_merging_a_table_is_merging_the_map(seed: int, num_groups: int):
    ours, truth = pair(seed)
    counted = truth != IGNORED
    segments = measures.in_raster_order(ours, counted)
    sizes = np.bincount(segments[counted])
    group = measures.merge(sizes, measures.borders(segments), num_groups)
    expected = slow_merge(ours, counted, num_groups)
    assert adjusted_rand_score(expected[counted], group[segments[counted]]) == 1
    assert len(np.unique(group)) == num_groups


def test_a_segment_without_neighbours_joins_the_largest():
    truth = np.array([[0, IGNORED, 1, 1, 2, 2, 2]])
    ours = np.array([[7, 9, 4, 4, 5, 5, 5]])
    segments = measures.in_raster_order(ours, truth != IGNORED)
    group = measures.merge(np.array([1, 2, 3]), measures.borders(segments), 2)
    assert group[0] == group[2] != group[1]


@pytest.mark.parametrize(("sizes", "groups"), [([4, 4], [0, 0]), ([4, 4, 4], [0, 0, 1])])
def test_a_segment_never_joins_itself(sizes: list[int], groups: list[int]):
    count = len(sizes)
    found = measures.merge(np.array(sizes), np.zeros((count, count), int), max(groups) + 1)
    assert found.tolist() == groups


def test_too_few_segments_leave_regions_without_a_partner():
    truth = np.array([[0, 0, 1, 1]])
    assert of(np.zeros((1, 4), int), truth).hungarian_miou == pytest.approx(0.5 / 2)


@pytest.mark.parametrize("seed", range(4))
def test_majority_paints_segments_with_their_region(seed: int):
    ours, truth = pair(seed)
    counted = truth != IGNORED
    painted = np.full(truth.shape, IGNORED)
    for segment in np.unique(ours[counted]):
        inside = (ours == segment) & counted
        painted[inside] = np.bincount(truth[inside]).argmax()
    expected = np.mean([slow_iou(painted == r, truth == r) for r in range(4)])
    assert of(ours, truth).majority_miou == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance", [1, 2])
def test_boundary_recall_looks_around_every_annotated_edge(seed: int, tolerance: int):
    ours, truth = pair(seed)
    counted = truth != IGNORED
    edges = {
        name: {one for one, other in neighbours(labels, counted) if labels[one] != labels[other]}
        for name, labels in (("ours", ours), ("truth", truth))
    }
    near = [
        any(abs(y - v) <= tolerance and abs(x - u) <= tolerance for v, u in edges["ours"])
        for y, x in edges["truth"]
    ]
    found = measures.boundary_recall(
        measures.edges(ours, counted), measures.edges(truth, counted), tolerance
    )
    assert found == pytest.approx(np.mean(near))


def test_an_edge_may_lie_off_by_six_pixels_at_vga():
    assert measures.boundary_tolerance(480, 640) == 6
    assert measures.boundary_tolerance(16, 16) == 1


@pytest.mark.parametrize("seed", range(3))
def test_names_of_labels_do_not_matter(seed: int):
    ours, truth = pair(seed)
    generator = np.random.default_rng(seed)
    names = generator.permutation(200)
    regions = np.array([*generator.permutation(4), IGNORED])
    objects = frozenset(regions[[1, 2, 3]].tolist())
    assert astuple(of(names[ours], regions[truth], objects)) == pytest.approx(
        astuple(of(ours, truth))
    )
    assert astuple(of(ours * 10**9 - 5, truth)) == astuple(of(ours, truth))


def test_equal_cells_are_merged_alike_whatever_they_are_called():
    grid = np.kron(np.arange(16).reshape(4, 4), np.ones((3, 3), int))
    truth = patchwork(3, 5, grid.shape)
    names = np.random.default_rng(1).permutation(16)
    assert of(names[grid], truth) == of(grid, truth)


@pytest.mark.parametrize("seed", range(3))
def test_ignored_pixels_never_count(seed: int):
    ours, truth = pair(seed)
    other = ours.copy()
    ignored = truth == IGNORED
    other[ignored] = np.random.default_rng(seed).integers(0, 99, ignored.sum())
    assert of(other, truth) == of(ours, truth)


def test_the_annotation_itself_is_perfect():
    truth = patchwork(0, 5)
    found = of(truth + 3, truth)
    assert astuple(found)[:5] == pytest.approx([1] * 5)
    assert (found.segments, found.regions, found.objects) == (5, 5, 4)


def test_a_finer_grid_wins_the_majority_but_not_the_matching():
    truth = np.zeros((64, 64), int)
    truth[20:45, 10:50] = 1
    coarse, fine = (np.kron(np.arange(n * n).reshape(n, n), np.ones((64 // n,) * 2, int))
                    for n in (4, 16))  # fmt: skip
    assert of(fine, truth).majority_miou > of(coarse, truth).majority_miou + 0.1
    assert of(fine, truth).hungarian_miou < of(coarse, truth).hungarian_miou + 0.1
    assert of(fine, truth).ari < of(coarse, truth).ari


def astuple(found: measures.Agreement) -> tuple[float, ...]:
    return dataclasses.astuple(found)
