"""The nearest centre of every point, the inner loop of k-means.

Shape letters: N points, D channels, K centres, C points of a chunk.
"""

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "euclidean"]

CHUNK_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 24}  # similarities at a time: a CPU's stay in cache


def nearest(points_ND: Tensor, centers_KD: Tensor, metric: Metric = "cosine") -> Tensor:
    """Index of the nearest centre, by dot product or by distance; the first of equals."""
    # |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2): the bracket is to be large.
    offsets_K = centers_KD.square().sum(dim=1) / 2 if metric == "euclidean" else None
    chunk = max(1, CHUNK_NUMBERS[points_ND.device.type] // len(centers_KD))
    labels = []
    for points_CD in points_ND.split(chunk):
        scores_CK = points_CD @ centers_KD.T
        if offsets_K is not None:
            scores_CK -= offsets_K
        labels.append(scores_CK.max(dim=1).indices)
    return torch.cat(labels)
