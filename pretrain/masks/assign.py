"""The nearest centre of every point, the inner loop of k-means.

Shape letters: N points, D channels, K centres, C points of a chunk.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "euclidean"]

CHUNK_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 24}  # similarities at a time: a CPU's stay in cache
SCREENED_FROM = 32  # centres; with fewer the products cost less than a screening saves
# Of a product of unit rows whose numbers were first rounded to bfloat16 (a relative 2^-9 each).
ROUNDING = 1.01 * 2**-8


def nearest(points_ND: Tensor, centers_KD: Tensor, metric: Metric = "cosine") -> Tensor:
    """Index of the nearest centre, by dot product or by distance; the first of equals."""
    # |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2): the bracket is to be large.
    offsets_K = centers_KD.square().sum(dim=1) / 2 if metric == "euclidean" else None
    labels = []
    for points_CD in _chunks(points_ND, len(centers_KD)):
        scores_CK = points_CD @ centers_KD.T
        if offsets_K is not None:
            scores_CK -= offsets_K
        labels.append(scores_CK.max(dim=1).indices)
    return torch.cat(labels)


def nearest_of_unit(points_ND: Tensor, centers_KD: Tensor) -> Tensor:
    """Index of the nearest centre by float32 products, mostly without computing them.

    Products may be rounded, if that is fast here; where two centres then lie too close for the
    rounding to decide between them, they are computed again in full.

    Args:
        points_ND, centers_KD: rows of at most unit length.
    """
    if len(centers_KD) < SCREENED_FROM or points_ND.dtype != torch.float32:
        return nearest(points_ND, centers_KD)
    labels = []
    for points_CD in _chunks(points_ND, len(centers_KD)):
        scores_CK = rounded_products(points_CD, centers_KD)
        best_C, labels_C = scores_CK.max(dim=1)
        rivals_C = (scores_CK >= (best_C - 2 * ROUNDING)[:, None]).sum(dim=1)
        doubtful = (rivals_C > 1).nonzero()[:, 0]
        exact = points_CD[doubtful] @ centers_KD.T
        labels_C[doubtful] = exact.max(dim=1).indices
        labels.append(labels_C)
    return torch.cat(labels)


def rounded_products(points_CD: Tensor, centers_KD: Tensor) -> Tensor:
    """Products whose factors may be rounded to bfloat16, where the hardware gains by it."""
    with _rounding_allowed():
        return points_CD @ centers_KD.T


@contextlib.contextmanager
def _rounding_allowed() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _chunks(points_ND: Tensor, num_centers: int) -> tuple[Tensor, ...]:
    return points_ND.split(max(1, CHUNK_NUMBERS[points_ND.device.type] // num_centers))
