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
import torch.nn.functional as F
from torch import Tensor

from pretrain.correspondence import OUTSIDE, corresponding_cells
from pretrain.masks.assign import Metric, nearest
from pretrain.masks.kmeans import KMeans, kmeans
from sslbench import dist

# (pixels_PD, prototypes_KD, owner_P) -> one distance per pixel.
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Geometry:
    """Where a view lies in its image."""

    box_B4: Tensor  # float64, (x0, y0, width, height) in pixels
    flip_B: Tensor  # bool

    def __getitem__(self, images: slice) -> "Geometry":
        return Geometry(self.box_B4[images], self.flip_B[images])

    @classmethod
    def join(cls, pieces: "Sequence[Geometry]") -> "Geometry":
        """Put the images of several batches behind each other."""
        boxes, flips = [g.box_B4 for g in pieces], [g.flip_B for g in pieces]
        return cls(torch.cat(boxes), torch.cat(flips))

    def gathered(self) -> "Geometry":
        """The geometry of the global batch."""
        flips = dist.all_gather(self.flip_B.to(torch.uint8)).bool()
        return Geometry(dist.all_gather(self.box_B4), flips)


@dataclass(frozen=True)
class Prototypes:
    """One view's clustering."""

    centers_KD: Tensor
    owner_BP: Tensor
    own_cosine: Tensor | None = None  # mean over the cells, with their own centre
    num_empty: int = 0  # centres that own no cell


@dataclass(frozen=True)
class Pull:
    """One term of Eq. 3 for one group of images: cells of a view are drawn to prototypes."""

    view: int
    centers_KD: Tensor
    owner_BP: Tensor | None  # OUTSIDE = the cell is not drawn; None = each to its nearest centre
    num_cells: Tensor  # that are drawn, in the whole group; the term is their mean
    metric: Metric = "cosine"  # what nearest means


def cluster(
    target_BDhw: Tensor,
    num_clusters: int,
    generator: torch.Generator,
    rule: KMeans,
) -> Prototypes:
    """Cluster the cells of one group of images."""
    points_ND = rows(target_BDhw.detach()).flatten(0, 1)
    made = kmeans(points_ND, num_clusters, generator, rule)
    own_cosine = F.cosine_similarity(points_ND, made.centers_KD[made.labels_N]).mean()
    owner_BP = made.labels_N.view(len(target_BDhw), -1)
    return Prototypes(made.centers_KD, owner_BP, own_cosine, made.num_empty)


def rows(map_BDhw: Tensor) -> Tensor:
    """The cells of a map in row-major order, (B, P, D)."""
    return map_BDhw.flatten(2).transpose(1, 2)


def make_pulls(
    prototypes: Sequence[Prototypes],
    geometry: Sequence[Geometry],
    size: tuple[int, int],
    *,
    aligned: bool = True,
    metric: Metric = "cosine",
) -> list[Pull]:
    """List the four terms of Eq. 3 for one group of images.

    Args:
        prototypes: the two views' clusterings of the target maps.
        size: (h, w) of the maps.
        aligned: a cell's label in the other view is read where the same pixels lie; otherwise it is
            the other view's nearest prototype.
        metric: of the clusterings.
    """
    pulls = []
    for own, other in ((0, 1), (1, 0)):
        owner_BP = prototypes[own].owner_BP
        all_cells = torch.tensor(owner_BP.numel(), device=owner_BP.device)
        pulls.append(Pull(own, prototypes[own].centers_KD, owner_BP, all_cells))
        if not aligned:
            pulls.append(Pull(own, prototypes[other].centers_KD, None, all_cells, metric))
            continue
        cells_BP = corresponding_cells(
            geometry[own].box_B4,
            geometry[own].flip_B,
            geometry[other].box_B4,
            geometry[other].flip_B,
            size,
        )
        inside_BP = cells_BP != OUTSIDE
        seen_BP = prototypes[other].owner_BP.gather(1, cells_BP.clamp(min=0))
        owner_BP = torch.where(inside_BP, seen_BP, OUTSIDE)
        pulls.append(Pull(own, prototypes[other].centers_KD, owner_BP, inside_BP.sum()))
    return pulls


def pull_loss(pull: Pull, pixels_BPD: Tensor, images: slice, distance: Distance) -> Tensor:
    """What some images of a group add to one of its terms; 0 where no cell is drawn.

    Args:
        pixels_BPD: online cells of the pull's view, of these images only.
        images: their place in the group.
    """
    if pull.owner_BP is None:
        pixels_PD = pixels_BPD.flatten(0, 1)
        owner_P = nearest(pixels_PD.detach(), pull.centers_KD, pull.metric)
    else:
        owner_BP = pull.owner_BP[images]
        drawn_BP = owner_BP != OUTSIDE
        pixels_PD, owner_P = pixels_BPD[drawn_BP], owner_BP[drawn_BP]
    distances_P = distance(pixels_PD, pull.centers_KD, owner_P)
    return distances_P.sum() / pull.num_cells.clamp(min=1)


def consistency_loss(
    online: Sequence[Tensor],
    prototypes: Sequence[Prototypes],
    geometry: Sequence[Geometry],
    distance: Distance,
    *,
    aligned: bool = True,
) -> Tensor:
    """Sum the four terms of Eq. 3 for one whole group of images.

    Args:
        online: the two views' online maps, (B, D, h, w); gradients flow here only.
        prototypes, geometry, aligned: as ``make_pulls`` takes them.
    """
    size = (online[0].shape[-2], online[0].shape[-1])
    everything = slice(0, len(online[0]))
    pulls = make_pulls(prototypes, geometry, size, aligned=aligned)
    terms = [pull_loss(pull, rows(online[pull.view]), everything, distance) for pull in pulls]
    return torch.stack(terms).sum()


@torch.no_grad()
def monitors(prototypes: Prototypes) -> dict[str, Tensor]:
    """Tell whether a clustering says anything."""
    num_clusters = len(prototypes.centers_KD)
    shares_K = torch.bincount(prototypes.owner_BP.flatten(), minlength=num_clusters).double()
    shares_K = shares_K / shares_K.sum()
    sum_D = prototypes.centers_KD.sum(dim=0)
    pairs = max(num_clusters * (num_clusters - 1), 1)
    watched = {} if prototypes.own_cosine is None else {"own_cosine": prototypes.own_cosine}
    return watched | {
        "empty_clusters": shares_K.new_tensor(prototypes.num_empty / num_clusters),  # share
        "cluster_entropy": torch.special.entr(shares_K).sum() / math.log(max(num_clusters, 2)),
        "prototype_cosine": (sum_D @ sum_D - num_clusters) / pairs,  # mean over pairs
    }


def collapsed_loss(pulls: Sequence[Pull]) -> float:
    """What a collapsed map would cost, 4 log K: a loss is judged by its share of it."""
    return sum(math.log(max(len(pull.centers_KD), 2)) for pull in pulls)


def image_groups(num_images: int, per_group: int) -> list[slice]:
    """Cut a batch into fixed groups; a remainder joins the last one."""
    starts = list(range(0, max(num_images - per_group, 0) + 1, per_group))
    ends = [*starts[1:], num_images]
    return [slice(a, b) for a, b in zip(starts, ends, strict=True)]
