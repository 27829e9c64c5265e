"""k-means: spherical (unit rows, centres on the sphere; paper Sec. 3.3), or Euclidean.

Deterministic for a generator's seed, on the CPU and on a GPU.

Shape letters: N points, D channels, K clusters.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.precision import at_least_fp32

Metric = Literal["cosine", "euclidean"]

MIN_NORM = 1e-6  # a zero row stays zero: cosine 0 with every centre
SPLIT = 1 / 1024  # how far apart the two halves of a split cluster start
CHUNK_POINTS = 65536  # bounds the N x K similarities


class PointsError(ValueError):
    """Points that cannot be clustered."""


@dataclass(frozen=True)
class Clustering:
    """Result of a k-means run."""

    centers_KD: Tensor  # K is the number asked for, or the number of points if smaller
    labels_N: Tensor  # int64, the nearest centre
    num_empty: int  # centres that own no point in the end


@torch.no_grad()
def kmeans(
    points_ND: Tensor,
    num_clusters: int,
    generator: torch.Generator,
    iterations: int = 20,
    metric: Metric = "cosine",
) -> Clustering:
    """Cluster points with Lloyd's iterations.

    Args:
        points_ND: features, all finite.
        num_clusters: K; fewer points than that give one cluster each.
        generator: on the CPU; draws the points that the centres start from.
        metric: ``cosine`` clusters the points' directions, and centres have unit length.

    Raises:
        PointsError: a point is not finite, or there is none.
    """
    if len(points_ND) == 0:
        raise PointsError("there are no points to cluster")
    if not bool(torch.isfinite(points_ND).all()):
        raise PointsError("some features are not finite; the network has diverged")
    points_ND = at_least_fp32(points_ND)
    if metric == "cosine":
        points_ND = F.normalize(points_ND, dim=1, eps=MIN_NORM)
    start_K = torch.randperm(len(points_ND), generator=generator)[:num_clusters]
    centers_KD = points_ND[start_K.to(points_ND.device)]
    for _ in range(iterations):
        labels_N = nearest(points_ND, centers_KD, metric)
        centers_KD = _centroids(points_ND, labels_N, centers_KD, metric)
    labels_N = nearest(points_ND, centers_KD, metric)
    sizes_K = torch.bincount(labels_N, minlength=len(centers_KD))
    return Clustering(centers_KD, labels_N, int((sizes_K == 0).sum()))


def nearest(points_ND: Tensor, centers_KD: Tensor, metric: Metric = "cosine") -> Tensor:
    """Index of the nearest centre, by dot product or by distance; the first of equals."""
    # |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2): the bracket is to be large.
    offsets_K = centers_KD.square().sum(dim=1) / 2 if metric == "euclidean" else None
    labels = []
    for chunk_ND in torch.split(points_ND, CHUNK_POINTS):
        scores_NK = chunk_ND @ centers_KD.T
        labels.append((scores_NK if offsets_K is None else scores_NK - offsets_K).argmax(dim=1))
    return torch.cat(labels)


def _centroids(points_ND: Tensor, labels_N: Tensor, old_KD: Tensor, metric: Metric) -> Tensor:
    sizes_K = torch.bincount(labels_N, minlength=len(old_KD))
    # Summing the sorted rows bag by bag has a fixed order, which atomic adds on a GPU have not.
    order_N = labels_N.argsort(stable=True)
    starts_K = sizes_K.cumsum(0) - sizes_K
    sums_KD = F.embedding_bag(order_N, points_ND, starts_K, mode="sum")
    if metric == "cosine":
        centers_KD = F.normalize(sums_KD, dim=1, eps=MIN_NORM)
    else:
        centers_KD = sums_KD / sizes_K.clamp(min=1)[:, None]
    return _split_largest(centers_KD, sizes_K, metric)


def _split_largest(centers_KD: Tensor, sizes_K: Tensor, metric: Metric) -> Tensor:
    """Give each empty cluster one half of the largest one."""
    empty = (sizes_K == 0).nonzero().flatten().tolist()
    if not empty:
        return centers_KD
    sizes_K, centers_KD = sizes_K.clone(), centers_KD.clone()
    signs_D = torch.ones_like(centers_KD[0])
    signs_D[1::2] = -1
    for index in empty:
        largest = int(sizes_K.argmax())
        center_D = centers_KD[largest].clone()
        halves = [center_D * (1 + SPLIT * signs_D), center_D * (1 - SPLIT * signs_D)]
        if metric == "cosine":
            halves = [F.normalize(half_D, dim=0, eps=MIN_NORM) for half_D in halves]
        centers_KD[index], centers_KD[largest] = halves
        half = int(sizes_K[largest]) // 2
        sizes_K[index], sizes_K[largest] = half, sizes_K[largest] - half
    return centers_KD
