"""Clustering consistency between two views (paper Eq. 3, Algorithm 2).

Each view's target map is clustered; the online maps of both views are drawn to the prototypes: of
their own clustering (intra) and, where the views overlap, of the other view's (inter). Prototypes
and assignments carry no gradient.

Shape letters: B images, P = h*w cells, D channels, K prototypes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.correspondence import OUTSIDE, corresponding_cells
from pretrain.masks.kmeans import nearest, spherical_kmeans

# (pixels_PD, prototypes_KD, owner_P) -> one distance per pixel.
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Geometry:
    """Where a view lies in its image."""

    box_B4: Tensor  # float64, (x0, y0, width, height) in pixels
    flip_B: Tensor  # bool

    def __getitem__(self, images: slice) -> "Geometry":
        return Geometry(self.box_B4[images], self.flip_B[images])


@dataclass(frozen=True)
class Prototypes:
    """One view's clustering."""

    centers_KD: Tensor
    owner_BP: Tensor


def cluster(
    target_BDhw: Tensor, num_clusters: int, generator: torch.Generator, iterations: int
) -> Prototypes:
    """Cluster the cells of one group of images."""
    points_ND = target_BDhw.detach().flatten(2).transpose(1, 2).flatten(0, 1)
    made = spherical_kmeans(points_ND, num_clusters, generator, iterations)
    return Prototypes(made.centers_KD, made.labels_N.view(len(target_BDhw), -1))


def consistency_loss(
    online: Sequence[Tensor],
    prototypes: Sequence[Prototypes],
    geometry: Sequence[Geometry],
    distance: Distance,
    *,
    aligned: bool = True,
) -> Tensor:
    """Sum the four terms of Eq. 3 for one group of images.

    Args:
        online: the two views' online maps, (B, D, h, w); gradients flow here only.
        prototypes: the two views' clusterings of the target maps.
        aligned: a cell's label in the other view is read where the same pixels lie; otherwise it is
            the other view's nearest prototype.
    """
    size = (online[0].shape[-2], online[0].shape[-1])
    pixels = [map_BDhw.flatten(2).transpose(1, 2) for map_BDhw in online]
    total = pixels[0].new_zeros(())
    for own, other in ((0, 1), (1, 0)):
        intra = distance(
            pixels[own].flatten(0, 1),
            prototypes[own].centers_KD,
            prototypes[own].owner_BP.flatten(),
        ).mean()
        if aligned:
            cells_BP = corresponding_cells(
                geometry[own].box_B4,
                geometry[own].flip_B,
                geometry[other].box_B4,
                geometry[other].flip_B,
                size,
            )
            inter = _inter_aligned(pixels[own], prototypes[other], cells_BP, distance)
        else:
            inter = _inter_nearest(pixels[own], prototypes[other].centers_KD, distance)
        total = total + intra + inter
    return total


def _inter_aligned(
    pixels_BPD: Tensor, other: Prototypes, cells_BP: Tensor, distance: Distance
) -> Tensor:
    """Mean over the cells that the other view shows too; 0 if there is none."""
    inside_BP = cells_BP != OUTSIDE
    owner_BP = other.owner_BP.gather(1, cells_BP.clamp(min=0))
    shared_PD = pixels_BPD[inside_BP]
    return distance(shared_PD, other.centers_KD, owner_BP[inside_BP]).sum() / max(len(shared_PD), 1)


def _inter_nearest(pixels_BPD: Tensor, centers_KD: Tensor, distance: Distance) -> Tensor:
    pixels_PD = pixels_BPD.flatten(0, 1)
    owner_P = nearest(pixels_PD.detach(), centers_KD)
    return distance(pixels_PD, centers_KD, owner_P).mean()


@torch.no_grad()
def monitors(prototypes: Prototypes, loss: Tensor) -> dict[str, Tensor]:
    """Tell whether a clustering says anything.

    Args:
        loss: the four-term sum; divided by its value for a collapsed map, 4 log K, since K varies.
    """
    num_clusters = len(prototypes.centers_KD)
    log_k = math.log(max(num_clusters, 2))
    shares_K = torch.bincount(prototypes.owner_BP.flatten(), minlength=num_clusters).double()
    shares_K = shares_K / shares_K.sum()
    sum_D = prototypes.centers_KD.sum(dim=0)
    pairs = max(num_clusters * (num_clusters - 1), 1)
    return {
        "cluster_entropy": torch.special.entr(shares_K).sum() / log_k,  # 1 = equal sizes
        "prototype_cosine": (sum_D @ sum_D - num_clusters) / pairs,  # mean over pairs
        "clustering_relative": loss / (4 * log_k),
    }


def image_groups(num_images: int, per_group: int) -> list[slice]:
    """Cut a batch into fixed groups; a remainder joins the last one."""
    starts = list(range(0, max(num_images - per_group, 0) + 1, per_group))
    ends = [*starts[1:], num_images]
    return [slice(a, b) for a, b in zip(starts, ends, strict=True)]
