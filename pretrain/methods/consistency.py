"""The clustering-consistency loss over a whole step: its groups, their K and their share of parts.

Groups of images are fixed in the global batch, so that the objective depends neither on the number
of processes nor on the parts that a step comes in.

Shape letters: B images, D channels, h x w cells of a map.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.config import ClusteringConfig
from pretrain.data import Batch
from pretrain.losses import clustering
from pretrain.losses.euclidean import euclidean_distance
from pretrain.losses.vmf import vmf_distance
from pretrain.masks.kmeans import KMeans
from pretrain.plan import EpochPlan
from sslbench import dist
from sslbench.rng import numpy_generator, torch_generator


@dataclass(frozen=True)
class Group:
    """Images that are clustered together, by their places in the global batch."""

    images: slice
    pulls: list[clustering.Pull]  # terms with a gradient
    constant: Tensor  # sum of the terms without one
    collapsed: float  # what all its terms would cost on a collapsed map
    weight: float  # of its loss in this process's sum


class Consistency:
    """Eq. 3 of a step: first the groups from maps without gradient, then the loss of each part.

    Args:
        cfg: the loss's own keys.
        seed: of K and of the starts of k-means.
    """

    def __init__(self, cfg: ClusteringConfig, seed: int) -> None:
        self.cfg, self.seed = cfg, seed
        self.literal = cfg.prototypes == "literal"
        self.distance, self.rule = _distance(cfg), KMeans.build(cfg)

    def groups(
        self,
        step: int,
        maps: list[Tensor],
        geometry: list[clustering.Geometry],
        plan: EpochPlan,
    ) -> tuple[tuple[Group, ...], dict[str, Tensor]]:
        """Cluster the groups of the global batch that hold images of this process.

        Where a group spans several processes, the maps are gathered.

        Args:
            maps: the two views' maps that prototypes are made of, (B, D, h, w).

        Returns:
            The groups, and monitors of the first view's clusterings.
        """
        per_group, num_images = self.cfg.images_per_group, len(maps[0])
        origin = dist.rank() * num_images  # place of the first image of ``maps``
        everyone = num_images * dist.world_size()
        mine = range(origin, origin + num_images)
        if num_images % per_group and dist.world_size() > 1:
            maps = [dist.all_gather(map_BDhw) for map_BDhw in maps]
            geometry = [g.gathered() for g in geometry]
            origin = 0
        made, watched = [], []
        for number, images in enumerate(clustering.image_groups(everyone, per_group)):
            if images.stop <= mine.start or images.start >= mine.stop:
                continue
            here = slice(images.start - origin, images.stop - origin)
            in_group = [m[here] for m in maps]
            prototypes = self.cluster(step, number, in_group, plan)
            weight = (images.stop - images.start) / num_images
            made.append(
                self._group(images, prototypes, [g[here] for g in geometry], in_group, weight)
            )
            watched.append(clustering.monitors(prototypes[0]))
        return tuple(made), {n: torch.stack([w[n] for w in watched]).mean() for n in watched[0]}

    def loss(
        self, part: Batch, maps: Sequence[Tensor], groups: Sequence[Group], num_images: int
    ) -> tuple[Tensor, Tensor]:
        """What a part adds to the loss, and that over what a collapsed map would cost.

        Args:
            maps: the part's online maps; of the first view only where prototypes are literal.
            num_images: of this process in the whole step.
        """
        first = dist.rank() * num_images + part.first
        mine = range(first, first + len(part.indices_B))
        pixels = [clustering.rows(map_BDhw) for map_BDhw in maps]
        total = relative = maps[0].new_zeros(())
        for group in groups:
            start, stop = max(group.images.start, mine.start), min(group.images.stop, mine.stop)
            if start >= stop:
                continue
            in_part = slice(start - mine.start, stop - mine.start)
            in_group = slice(start - group.images.start, stop - group.images.start)
            terms = [
                clustering.pull_loss(pull, pixels[pull.view][in_part], in_group, self.distance)
                for pull in group.pulls
            ]
            share = (stop - start) / (group.images.stop - group.images.start)
            loss = group.weight * (torch.stack(terms).sum() + share * group.constant)
            total = total + loss
            relative = relative + loss.detach() / group.collapsed
        return total, relative

    def num_clusters(self, step: int, group: int, clusters: tuple[int, int]) -> int:
        """K of a group in a step, uniform over the range with both ends."""
        generator = numpy_generator(self.seed, "clustering clusters", step, group)
        return int(generator.integers(clusters[0], clusters[1] + 1))

    def cluster(
        self, step: int, number: int, maps: list[Tensor], plan: EpochPlan
    ) -> list[clustering.Prototypes]:
        """Cluster the two views' maps of one group, each by itself, with the same K."""
        k = self.num_clusters(step, number, plan.clusters)
        return [
            clustering.cluster(
                map_BDhw,
                k,
                torch_generator(self.seed, "clustering start", step, number, view),
                self.rule,
            )
            for view, map_BDhw in enumerate(maps)
        ]

    def _group(
        self,
        images: slice,
        prototypes: list[clustering.Prototypes],
        geometry: list[clustering.Geometry],
        maps: list[Tensor],
        weight: float,
    ) -> Group:
        pulls = clustering.make_pulls(
            prototypes,
            geometry,
            (maps[0].shape[-2], maps[0].shape[-1]),
            aligned=self.cfg.correspondence == "aligned",
            metric=self.cfg.metric,
        )
        collapsed, constant = clustering.collapsed_loss(pulls), maps[0].new_zeros(())
        if self.literal:
            # Cells of the target's own view are drawn to constants: a value without gradient.
            fixed = [pull for pull in pulls if pull.view == 1]
            pulls = [pull for pull in pulls if pull.view == 0]
            pixels, everything = clustering.rows(maps[1]), slice(0, len(maps[1]))
            terms = [clustering.pull_loss(p, pixels, everything, self.distance) for p in fixed]
            constant = torch.stack(terms).sum()
        return Group(images, pulls, constant, collapsed, weight)


def _distance(cfg: ClusteringConfig) -> clustering.Distance:
    if cfg.distance == "vmf":
        return functools.partial(vmf_distance, kappa=cfg.kappa)
    return euclidean_distance
