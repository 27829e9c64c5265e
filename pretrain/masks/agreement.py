"""How far a partition of an image agrees with its annotated regions: functions of two label maps.

All but boundary recall come from one contingency table of the two maps. Pixels whose region is
``IGNORED`` (crowds, void) count nowhere: neither in the table, nor as a border of two segments.

Two of the measures are won by whoever makes many segments: boundary recall and the majority's IoU.
Read them beside the number of segments, or beside a grid of about as many.

Shape letters: H x W pixels, S segments (ours), T annotated regions, G groups of segments.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslbench.datasets import IGNORED

Labels = NDArray[np.integer[Any]]

# Of the image's diagonal, as in the Berkeley benchmark (Martin, Fowlkes and Malik 2004): 6 pixels
# at 640x480. A map at stride 8 is off by up to 4 pixels even where it is right.
BOUNDARY_TOLERANCE = 0.0075


@dataclass(frozen=True)
class Agreement:
    """One map of one image against its annotation; shares are 0..1, the index -1..1.

    nan: there is nothing to be measured, as boundaries of an image with a single region.
    """

    ari: float
    hungarian_miou: float
    best_overlap: float  # mean over the image's objects
    boundary_recall: float
    majority_miou: float
    segments: int  # with counted pixels
    regions: int
    objects: int  # with visible pixels


@dataclass(frozen=True)
class Annotated:
    """Annotated regions of an image, prepared once for all maps that are measured on it.

    Args:
        regions_HW: a number from 0 on for each region, ``IGNORED`` elsewhere.
        objects: the numbers that are objects; the others are background or stuff.
    """

    regions_HW: Labels
    objects: frozenset[int]
    counted_HW: NDArray[np.bool_]
    edges_HW: NDArray[np.bool_]

    @classmethod
    def of(cls, regions_HW: Labels, objects: frozenset[int]) -> "Annotated":
        """Find what every comparison needs."""
        counted_HW = regions_HW != IGNORED
        return cls(regions_HW, objects, counted_HW, edges(regions_HW, counted_HW))


def agreement(ours_HW: Labels, annotated: Annotated) -> Agreement:
    """Compute all measures of one map."""
    segments_HW = in_raster_order(ours_HW, annotated.counted_HW)
    table_ST = contingency(segments_HW, annotated.regions_HW)
    seen = np.flatnonzero(table_ST.any(axis=0))
    is_object = np.isin(seen, list(annotated.objects))
    table_ST = table_ST[:, seen]
    best_T = ious(table_ST).max(axis=0, initial=0)
    group_S = merge(table_ST.sum(axis=1), borders(segments_HW), max(table_ST.shape[1], 1))
    return Agreement(
        ari=adjusted_rand_index(table_ST),
        hungarian_miou=hungarian_miou(grouped(table_ST, group_S)),
        best_overlap=_mean(best_T[is_object]),
        boundary_recall=boundary_recall(
            edges(segments_HW, annotated.counted_HW),
            annotated.edges_HW,
            boundary_tolerance(*ours_HW.shape),
        ),
        majority_miou=majority_miou(table_ST),
        segments=table_ST.shape[0],
        regions=table_ST.shape[1],
        objects=int(is_object.sum()),
    )


def in_raster_order(labels_HW: Labels, counted_HW: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number labels 0, 1, ... by their first counted pixel; ``IGNORED`` where none is counted.

    So nothing that follows can depend on what the labels are called.
    """
    if labels_HW.min() < 0 or labels_HW.max() >= labels_HW.size:
        labels_HW = np.unique(labels_HW, return_inverse=True)[1].reshape(labels_HW.shape)
    masked_HW = labels_HW.astype(np.int32)
    masked_HW[~counted_HW] = IGNORED
    # A label's first pixel begins a run of its row: far fewer to look at than all.
    begins_HW = masked_HW != IGNORED
    begins_HW[:, 1:] &= masked_HW[:, 1:] != masked_HW[:, :-1]
    places = np.flatnonzero(begins_HW)[::-1]
    first = np.full(int(labels_HW.max()) + 1, labels_HW.size)
    first[masked_HW.ravel()[places]] = places  # of equal indices the last value stays
    number = np.empty(len(first) + 1, np.int32)
    number[np.argsort(first, kind="stable")] = np.arange(len(first))
    number[IGNORED] = IGNORED
    numbers_HW: NDArray[np.int32] = number[masked_HW]
    return numbers_HW


def contingency(segments_HW: Labels, regions_HW: Labels) -> NDArray[np.int64]:
    """Count the pixels that each segment shares with each region, (S, T).

    Args:
        segments_HW: 0 .. S-1 or ``IGNORED``.
        regions_HW: 0 .. T-1 or ``IGNORED``.
    """
    spans = int(segments_HW.max()) + 2, int(regions_HW.max()) + 2  # the first is for the ignored
    pairs_HW = np.multiply(segments_HW, spans[1], dtype=np.intp)
    pairs_HW += regions_HW
    pairs_HW += spans[1] + 1  # from -1 to 0, in both
    counts = np.bincount(pairs_HW.ravel(), minlength=spans[0] * spans[1])
    table_ST: NDArray[np.int64] = counts.reshape(spans)[1:, 1:]
    return table_ST


def adjusted_rand_index(table_ST: NDArray[np.int64]) -> float:
    """Agreement on which pairs of pixels belong together, beyond chance (Hubert and Arabie 1985).

    1 for equal partitions, 0 on average for random ones of the same sizes; 1 where both are
    trivial.
    """
    together = _pairs(table_ST)
    ours, truth = _pairs(table_ST.sum(axis=1)), _pairs(table_ST.sum(axis=0))
    expected = ours * truth / max(_pairs(table_ST.sum()), 1.0)
    best = (ours + truth) / 2
    return 1.0 if best == expected else float((together - expected) / (best - expected))


def _pairs(counts: Any) -> float:
    counts = np.asarray(counts, np.float64)
    return float((counts * (counts - 1) / 2).sum())


def ious(table_ST: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of every segment with every region, (S, T)."""
    sizes_S, sizes_T = table_ST.sum(axis=1), table_ST.sum(axis=0)
    overlaps_ST: NDArray[np.float64] = table_ST / np.maximum(
        sizes_S[:, None] + sizes_T - table_ST, 1
    )
    return overlaps_ST


def hungarian_miou(table_GT: NDArray[np.int64]) -> float:
    """Match groups and regions one to one, so that the sum of their IoU is largest; its mean.

    The mean is over all regions: one without a partner counts 0. Give it as many groups as there
    are regions (``merge``), or a map of many segments may choose among them.
    """
    from scipy.optimize import linear_sum_assignment

    overlaps_GT = ious(table_GT)
    chosen = linear_sum_assignment(overlaps_GT, maximize=True)
    return float(overlaps_GT[chosen].sum() / max(table_GT.shape[1], 1))


def majority_miou(table_ST: NDArray[np.int64]) -> float:
    """Give each segment to the region that has most of it; mean IoU of the regions so painted.

    An oracle's upper bound on what can be drawn with these segments: any fine grid wins it.
    """
    owner_S = table_ST.argmax(axis=1)
    painted_TT = grouped(table_ST, owner_S, table_ST.shape[1])
    return _mean(np.diagonal(ious(painted_TT)))


def grouped(
    table_ST: NDArray[np.int64], group_S: NDArray[np.int64], num_groups: int | None = None
) -> NDArray[np.int64]:
    """Table of a map whose segments of one group are one, (G, T)."""
    num_groups = int(group_S.max(initial=-1)) + 1 if num_groups is None else num_groups
    table_GT = np.zeros((num_groups, table_ST.shape[1]), np.int64)
    np.add.at(table_GT, group_S, table_ST)
    return table_GT


def borders(segments_HW: Labels) -> NDArray[np.int64]:
    """Length of the border between every two segments, in pairs of neighbouring pixels, (S, S)."""
    count = int(segments_HW.max()) + 1
    shared_SS = np.zeros((count, count), np.int64)
    for one, other in (
        (segments_HW[:, :-1], segments_HW[:, 1:]),
        (segments_HW[:-1], segments_HW[1:]),
    ):
        differ = (one != other) & (one != IGNORED) & (other != IGNORED)
        pairs = one[differ].astype(np.int64) * count + other[differ]
        shared_SS += np.bincount(pairs, minlength=count**2).reshape(count, count)
    return shared_SS + shared_SS.T


def merge(
    sizes_S: NDArray[np.int64], borders_SS: NDArray[np.int64], num_groups: int
) -> NDArray[np.int64]:
    """Merge segments until ``num_groups`` are left; the group of each, 0, 1, ...

    The smallest segment joins the one that it has the longest border with, again and again; one
    that borders on none joins the largest. The first of equals is taken. (Geographers call it
    eliminating slivers; Felzenszwalb and Huttenlocher end the same way.) Of the annotation it knows
    the number of regions and nothing else, so that no map gains by having many segments.
    """
    sizes = sizes_S.astype(np.float64)
    shared_SS = borders_SS.copy()
    group_S = np.arange(len(sizes))
    for _ in range(len(sizes) - num_groups):
        smallest = int(sizes.argmin())
        neighbour = int(shared_SS[smallest].argmax())
        if not shared_SS[smallest, neighbour]:
            is_other = np.isfinite(sizes) & (np.arange(len(sizes)) != smallest)
            neighbour = int(np.where(is_other, sizes, -1).argmax())
        sizes[neighbour] += sizes[smallest]
        sizes[smallest] = np.inf  # gone
        shared_SS[neighbour] += shared_SS[smallest]
        shared_SS[:, neighbour] += shared_SS[:, smallest]
        shared_SS[smallest] = shared_SS[:, smallest] = 0
        shared_SS[neighbour, neighbour] = 0
        group_S[group_S == smallest] = neighbour
    numbered: NDArray[np.int64] = np.unique(group_S, return_inverse=True)[1]
    return numbered


def edges(labels_HW: Labels, counted_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose neighbour to the right or below has another label; both are to be counted."""
    found_HW = np.zeros(labels_HW.shape, bool)
    found_HW[:, :-1] = (
        (labels_HW[:, :-1] != labels_HW[:, 1:]) & counted_HW[:, :-1] & counted_HW[:, 1:]
    )
    found_HW[:-1] |= (labels_HW[:-1] != labels_HW[1:]) & counted_HW[:-1] & counted_HW[1:]
    return found_HW


def boundary_recall(
    ours_HW: NDArray[np.bool_], truth_HW: NDArray[np.bool_], tolerance: int
) -> float:
    """Share of annotated edge pixels with one of ours near by (Ren and Malik 2003).

    Args:
        tolerance: pixels, along rows and along columns: near is a square of 2 * tolerance + 1.
    """
    from scipy.ndimage import maximum_filter

    near_HW = maximum_filter(ours_HW.view(np.uint8), 2 * tolerance + 1, mode="constant")
    return _mean(near_HW[truth_HW])


def boundary_tolerance(height: int, width: int) -> int:
    """Pixels that an edge may lie off, at least 1."""
    return max(1, round(BOUNDARY_TOLERANCE * float(np.hypot(height, width))))


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else float("nan")
