"""k-means: spherical (unit rows, centres on the sphere; paper Sec. 3.3), or Euclidean.

Lloyd's iterations; an empty cluster takes half of the largest one. Deterministic for a generator's
seed, on the CPU and on a GPU.

Shape letters: N points, D channels, K clusters.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import KMeansConfig
from pretrain.masks.assign import Metric, nearest
from pretrain.masks.kmeans_faiss import faiss_centers
from sslbench.precision import at_least_fp32

Start = Literal["random", "kmeans++"]
Backend = Literal["torch", "faiss"]

MIN_NORM = 1e-6  # a zero row stays zero: cosine 0 with every centre
UNIT = 1e-5  # how far from 1 a length may be: it weighs a point, and turns it nowhere
SPLIT = 1 / 1024  # how far apart the two halves of a split cluster start
LEAST_FITTED = 32  # points for each cluster, on average, where not all points are fitted
GAP_STEPS = 1 << 40  # k-means++ adds its weights as integers, which no order of addition changes


class PointsError(ValueError):
    """Points that cannot be clustered."""


@dataclass(frozen=True)
class KMeans:
    """How points are clustered, apart from their number of clusters."""

    iterations: int = 20  # at most; the centres are final once no label changes
    metric: Metric = "cosine"  # clusters the points' directions, and centres have unit length
    start: Start = "random"  # centres start on points drawn alike, or far apart (k-means++)
    backend: Backend = "torch"
    fit_every: int = 1  # centres are fitted on every n-th point; all points are labelled

    @classmethod
    def build(cls, cfg: KMeansConfig) -> Self:
        """Read a config's keys."""
        return cls(cfg.iterations, cfg.metric, cfg.start, cfg.backend, cfg.fit_every)


DEFAULT = KMeans()


@dataclass(frozen=True)
class Clustering:
    """Result of a k-means run."""

    centers_KD: Tensor  # K is the number asked for, or the number of points if smaller
    labels_N: Tensor  # int64, the nearest centre
    num_empty: int  # centres that own no point in the end


@torch.no_grad()
def kmeans(
    points_ND: Tensor, num_clusters: int, generator: torch.Generator, rule: KMeans = DEFAULT
) -> Clustering:
    """Cluster points.

    Args:
        points_ND: features, all finite.
        num_clusters: K; fewer points than that give one cluster each.
        generator: on the CPU; draws the points that the centres start from.

    Raises:
        PointsError: a point is not finite, or there is none.
        BackendError: FAISS was asked for and is not installed.
    """
    if len(points_ND) == 0:
        raise PointsError("there are no points to cluster")
    if not is_finite(points_ND):
        raise PointsError("some features are not finite; the network has diverged")
    points_ND = at_least_fp32(points_ND)
    if rule.metric == "cosine":
        points_ND = _directions(points_ND)
    num_clusters = min(num_clusters, len(points_ND))
    fitted_ND = _thinned(points_ND, rule.fit_every, num_clusters)
    start_K = STARTS[rule.start](fitted_ND, num_clusters, generator, rule.metric)
    iterate = faiss_centers if rule.backend == "faiss" else lloyd
    centers_KD = iterate(fitted_ND, fitted_ND[start_K], rule.iterations, rule.metric)
    labels_N = nearest(points_ND, centers_KD, rule.metric)
    sizes_K = torch.bincount(labels_N, minlength=len(centers_KD))
    return Clustering(centers_KD, labels_N, int((sizes_K == 0).sum()))


def _directions(points_ND: Tensor) -> Tensor:
    """Rows of unit length or zero; not copied where they are so already."""
    norms_N = torch.linalg.vector_norm(points_ND, dim=1)
    if bool((((norms_N - 1).abs() <= UNIT) | (norms_N == 0)).all()):
        return points_ND
    return F.normalize(points_ND, dim=1, eps=MIN_NORM)


def is_finite(points_ND: Tensor) -> bool:
    """Whether all numbers are; in one pass and without a copy, unlike ``torch.isfinite``."""
    return bool(torch.stack(torch.aminmax(points_ND)).isfinite().all())  # NaN is least and largest


def lloyd(points_ND: Tensor, centers_KD: Tensor, iterations: int, metric: Metric) -> Tensor:
    """Centres after so many iterations, (K, D), or fewer where no label changes any more.

    Args:
        points_ND: of unit length where the metric is the cosine.
        centers_KD: where they start.
    """
    before_N = None
    for _ in range(iterations):
        labels_N = nearest(points_ND, centers_KD, metric)
        if before_N is not None and torch.equal(labels_N, before_N):
            break  # centres depend on the labels alone: nothing would change any more
        centers_KD = _centroids(points_ND, labels_N, centers_KD, metric)
        before_N = labels_N
    return centers_KD


def _thinned(points_ND: Tensor, every: int, num_clusters: int) -> Tensor:
    """Every n-th point, from the middle of the first n; more of them where clusters need more."""
    every = max(1, min(every, len(points_ND) // (LEAST_FITTED * num_clusters)))
    return points_ND if every == 1 else points_ND[every // 2 :: every].contiguous()


def _random_start(
    points_ND: Tensor, num_clusters: int, generator: torch.Generator, metric: Metric
) -> Tensor:
    start_K = torch.randperm(len(points_ND), generator=generator)[:num_clusters]
    return start_K.to(points_ND.device)


def _far_apart(
    points_ND: Tensor, num_clusters: int, generator: torch.Generator, metric: Metric
) -> Tensor:
    """Draw each next centre in proportion to its gap to the nearest so far (k-means++).

    Arthur and Vassilvitskii 2007; the gap is the squared distance, on the sphere half of it. Where
    all points coincide with centres, the last point is drawn again.
    """
    uniforms_K = torch.rand(num_clusters, generator=generator, dtype=torch.float64)
    uniforms_K = uniforms_K.to(points_ND.device)
    chosen = (uniforms_K[:1] * len(points_ND)).long()
    start, gap_N = [chosen], _gap(points_ND, chosen, metric)
    for uniform in uniforms_K[1:]:
        share_N = gap_N.double() / gap_N.max().clamp(min=torch.finfo(torch.float32).tiny)
        total_N = (share_N * GAP_STEPS).long().cumsum(0)
        target = (uniform * total_N[-1]).long()
        found = torch.searchsorted(total_N, target[None], right=True)
        chosen = found.clamp(max=len(points_ND) - 1)
        start.append(chosen)
        gap_N = torch.minimum(gap_N, _gap(points_ND, chosen, metric))
    return torch.cat(start)


def _gap(points_ND: Tensor, chosen: Tensor, metric: Metric) -> Tensor:
    if metric == "cosine":
        return (1 - points_ND @ points_ND[chosen[0]]).clamp(min=0)
    return (points_ND - points_ND[chosen]).square().sum(dim=1)


STARTS = {"random": _random_start, "kmeans++": _far_apart}


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
