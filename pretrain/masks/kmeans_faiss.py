"""FAISS as a second backend of k-means, on the CPU or, with faiss-gpu, on the points' own GPU.

Shape letters: N points, D channels, K clusters.
"""

from typing import Any, Literal

import torch
from torch import Tensor


class BackendError(ValueError):
    """A library that is not there."""


def faiss_centers(
    points_ND: Tensor, start_KD: Tensor, iterations: int, metric: Literal["cosine", "euclidean"]
) -> Tensor:
    """Centres after Lloyd's iterations over all points, (K, D), where the points are.

    Args:
        points_ND: float32; of unit length where the metric is the cosine.
        start_KD: at most as many as points.

    Raises:
        BackendError: FAISS is not installed.
    """
    faiss = require_faiss()
    found = faiss.Kmeans(
        points_ND.shape[1],
        len(start_KD),
        niter=iterations,
        spherical=metric == "cosine",
        # FAISS would leave points out beyond 256 a centre, and warn below 39
        max_points_per_centroid=len(points_ND),
        min_points_per_centroid=1,
    )
    if points_ND.is_cuda and faiss.get_num_gpus() > 0:
        # asked for a GPU by itself, FAISS would spread the work of every process over all of them
        resources, device = faiss.StandardGpuResources(), points_ND.device.index or 0
        found.index = faiss.index_cpu_to_gpu(resources, device, found.index)
    points, start = (values.float().cpu().contiguous().numpy() for values in (points_ND, start_KD))
    found.train(points, init_centroids=start)
    return torch.from_numpy(found.centroids).to(points_ND)


def require_faiss() -> Any:
    """Import FAISS.

    Raises:
        BackendError: it says what to install.
    """
    try:
        import faiss
    except ImportError as error:
        raise BackendError(
            "backend='faiss' needs FAISS: pip install faiss-cpu, or set backend='torch'"
        ) from error
    return faiss
