"""CYBORGS: contrast between bootstrapped masks, plus clustering consistency (paper Sec. 3).

Shape letters: B images, S pixels, R sampled masks, D channels, h x w cells of a map, g x g contrast
cells.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.checkpoint import NotFiniteError
from pretrain.compiled import Maps, trunk_maps
from pretrain.config import ClusteringConfig, CyborgsConfig, Precision, PretrainConfig
from pretrain.data import Batch, View, ViewSpec
from pretrain.ema import frozen_copy, update_average
from pretrain.fusion import fuse
from pretrain.heads import MLPHead
from pretrain.losses import clustering
from pretrain.losses.detcon import DetConLoss, Targets, detcon_loss
from pretrain.losses.euclidean import euclidean_distance
from pretrain.losses.vmf import vmf_distance
from pretrain.methods.base import StepOutput
from pretrain.photometry import Recipe
from pretrain.pooling import majority_labels, pool, present_ids, sample_ids
from pretrain.precision import at_least_fp32, autocast
from pretrain.schedule import EpochPlan, target_rate_at
from sslbench import dist
from sslbench.resnet import ResNet, resolve_layer
from sslbench.rng import numpy_generator, seeded, torch_generator

# BYOL's asymmetric pair: always blurred; rarely blurred, sometimes solarised.
RECIPES = (
    Recipe(blur_probability=1.0, solarize_probability=0.0),
    Recipe(blur_probability=0.1, solarize_probability=0.2),
)


class Branch(nn.Module):
    """Trunk and projector; the online branch has a predictor as well."""

    def __init__(self, backbone: ResNet, projector: MLPHead, predictor: MLPHead | None) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector
        if predictor is not None:
            self.predictor = predictor


@dataclass(frozen=True)
class _MaskedView:
    """The masks of one view on the contrast grid, and the ones that were drawn."""

    cells_Bgg: Tensor
    ids_BR: Tensor

    def __getitem__(self, images: slice) -> "_MaskedView":
        return _MaskedView(self.cells_Bgg[images], self.ids_BR[images])


@dataclass(frozen=True)
class _Group:
    """Images that are clustered together, by their places in the global batch."""

    images: slice
    pulls: list[clustering.Pull]
    weight: float  # of its loss in this process's sum


@dataclass(frozen=True)
class Prepared:
    """What every part of a step is compared with."""

    num_images: int  # of this process
    masks: tuple[_MaskedView, ...]  # of this process's images, per view
    targets: tuple[Targets, ...]  # of all processes, per view
    groups: tuple[_Group, ...]  # those that hold images of this process
    monitors: dict[str, Tensor]


class Cyborgs(nn.Module):
    """The method as the loop sees it.

    Args:
        backbone: the trunk.
        cfg: the method's own keys.
        crop_size: side of the views.
        seed: of K and of the starts of k-means within the clustering loss.
        precision: of the networks; pooling, losses, k-means and averages stay in float32.
        maps: how a trunk's maps are computed.
    """

    def __init__(
        self,
        backbone: ResNet,
        cfg: CyborgsConfig,
        crop_size: int,
        seed: int,
        precision: Precision = "fp32",
        maps: Maps = ResNet.maps,
    ) -> None:
        super().__init__()
        self.trunk_maps = maps
        self.cfg, self.seed, self.precision = cfg, seed, precision
        self.view_spec = ViewSpec(RECIPES, crop_size, num_uniforms=cfg.masks_per_view)
        self.contrast_layers = tuple(resolve_layer(n, backbone.depth) for n in cfg.contrast_layers)
        self.clustering_layer = resolve_layer(cfg.clustering.layer, backbone.depth)
        self.distance = _distance(cfg.clustering)
        channels = sum(backbone.channels(layer) for layer in self.contrast_layers)
        self.online = Branch(
            backbone,
            MLPHead(channels, cfg.hidden, cfg.embedding),
            MLPHead(cfg.embedding, cfg.hidden, cfg.embedding),
        )
        # In train mode for good: its BatchNorm uses batch statistics, as the online one's does.
        self.target = Branch(
            frozen_copy(backbone), frozen_copy(self.online.projector), predictor=None
        )

    @property
    def online_backbone(self) -> ResNet:
        """The trunk that is trained."""
        return self.online.backbone

    @torch.no_grad()
    def prepare(self, parts: Sequence[Batch], plan: EpochPlan) -> Prepared:
        """Run the target network on every part; gather its vectors, cluster its maps."""
        num_images = sum(len(part.indices_B) for part in parts)
        masks: list[list[_MaskedView]] = [[], []]
        vectors: list[list[Tensor]] = [[], []]
        maps_BDhw: list[list[Tensor]] = [[], []]
        for part in parts:
            for index, view in enumerate(part.views):
                maps = self._maps(self.target, view, plan)
                if plan.contrast:
                    masks[index].append(self._draw_masks(view))
                    vectors[index].append(self._project(self.target, maps, masks[index][-1]))
                if plan.clustering_weight > 0:
                    maps_BDhw[index].append(maps[self.clustering_layer])
        groups, monitors = (), {}
        if plan.clustering_weight > 0:
            if dist.any_true(not all(bool(m.isfinite().all()) for pair in maps_BDhw for m in pair)):
                raise NotFiniteError(f"target features of {self.clustering_layer}")
            geometry = [
                clustering.Geometry.join([p.views[v].geometry for p in parts]) for v in (0, 1)
            ]
            joined = [torch.cat(pieces) for pieces in maps_BDhw]
            groups, monitors = self._make_groups(parts[0].step, joined, geometry, plan)
        joined_masks = tuple(_joined(pieces) for pieces in masks if pieces)
        targets = tuple(
            Targets.gather(torch.cat(pieces), mask.ids_BR)
            for pieces, mask in zip(vectors, joined_masks, strict=False)
        )
        if plan.contrast:
            monitors |= _target_monitors(joined_masks, targets)
        return Prepared(num_images, joined_masks, targets, groups, monitors)

    def forward(self, part: Batch, prepared: Prepared, plan: EpochPlan) -> StepOutput:
        """Compute the loss terms that ``plan`` asks for; what it does not need is not computed."""
        online = [self._maps(self.online, view, plan) for view in part.views]
        terms: dict[str, Tensor] = {}
        monitors = dict(prepared.monitors)
        if plan.contrast:
            loss, watched = self._contrast(part, online, prepared)
            terms["contrast"] = loss * len(part.indices_B) / prepared.num_images
            monitors |= watched
        if plan.clustering_weight > 0:
            maps = [layers[self.clustering_layer] for layers in online]
            loss, relative = self._clustering(part, maps, prepared)
            terms["clustering"] = plan.clustering_weight * loss
            monitors["clustering_relative"] = relative * prepared.num_images / len(part.indices_B)
        return StepOutput(terms, monitors)

    @torch.no_grad()
    def update_target(self, progress: float) -> None:
        """Move the target's parameters towards the online network's."""
        rate = target_rate_at(self.cfg, progress)
        update_average(self.target.backbone, self.online.backbone, rate)
        update_average(self.target.projector, self.online.projector, rate)

    def _maps(self, branch: Branch, view: View, plan: EpochPlan) -> dict[str, Tensor]:
        """Float32 maps of the layers that a step needs; the forward pass stops at the deepest."""
        contrast = self.contrast_layers if plan.contrast else ()
        clustered = (self.clustering_layer,) if plan.clustering_weight > 0 else ()
        layers = list(dict.fromkeys((*clustered, *contrast)))
        with autocast(self.precision, view.images_B3SS.device):
            maps = self.trunk_maps(branch.backbone, view.images_B3SS, layers)
        return {layer: at_least_fp32(map_BDhw) for layer, map_BDhw in maps.items()}

    def _draw_masks(self, view: View) -> _MaskedView:
        assert view.labels_BSS is not None, "a contrastive epoch has masks"
        cells_Bgg = majority_labels(view.labels_BSS, self.cfg.contrast_grid)
        return _MaskedView(cells_Bgg, sample_ids(cells_Bgg, view.uniforms_BR))

    def _project(self, branch: Branch, maps: dict[str, Tensor], masks: _MaskedView) -> Tensor:
        """Projection of the features averaged over each mask, (B, R, embedding)."""
        fused = fuse(maps, self.contrast_layers, self.cfg.contrast_grid, self.cfg.fusion)
        pooled_BRD = pool(fused, masks.cells_Bgg, masks.ids_BR)
        with autocast(self.precision, fused.device):
            projected: Tensor = branch.projector(pooled_BRD)
        return at_least_fp32(projected)

    def _contrast(
        self, part: Batch, online: list[dict[str, Tensor]], prepared: Prepared
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 2 in both directions: mean over the part's anchors."""
        first = dist.rank() * prepared.num_images + part.first
        losses = []
        for own, other in ((0, 1), (1, 0)):
            masks = prepared.masks[own][part.images]
            projected = self._project(self.online, online[own], masks)
            with autocast(self.precision, projected.device):
                anchors: Tensor = self.online.predictor(projected)
            targets = prepared.targets
            losses.append(
                detcon_loss(
                    at_least_fp32(anchors),
                    masks.ids_BR,
                    targets[own],
                    targets[other],
                    self.cfg.temperature,
                    first,
                )
            )
        return losses[0].loss + losses[1].loss, _contrast_monitors(losses)

    def _make_groups(
        self,
        step: int,
        maps: list[Tensor],
        geometry: list[clustering.Geometry],
        plan: EpochPlan,
    ) -> tuple[tuple[_Group, ...], dict[str, Tensor]]:
        """Cluster the groups of the global batch that hold images of this process.

        Groups are fixed in the global batch, so that the objective does not depend on the number of
        processes; where one spans several of them, the target maps are gathered.
        """
        per_group, num_images = self.cfg.clustering.images_per_group, len(maps[0])
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
            prototypes = self._cluster(step, number, [m[here] for m in maps], plan)
            pulls = clustering.make_pulls(
                prototypes,
                [g[here] for g in geometry],
                (maps[0].shape[-2], maps[0].shape[-1]),
                aligned=self.cfg.clustering.correspondence == "aligned",
            )
            share = (images.stop - images.start) / everyone
            made.append(_Group(images, pulls, share * dist.world_size()))
            watched.append(clustering.monitors(prototypes[0]))
        return tuple(made), {n: torch.stack([w[n] for w in watched]).mean() for n in watched[0]}

    def _cluster(
        self, step: int, number: int, maps: list[Tensor], plan: EpochPlan
    ) -> list[clustering.Prototypes]:
        k = self._num_clusters(step, number, plan.clusters)
        return [
            clustering.cluster(
                map_BDhw,
                k,
                torch_generator(self.seed, "clustering start", step, number, view),
                self.cfg.clustering.iterations,
            )
            for view, map_BDhw in enumerate(maps)
        ]

    def _clustering(
        self, part: Batch, maps: list[Tensor], prepared: Prepared
    ) -> tuple[Tensor, Tensor]:
        """Eq. 3 over the groups: what the part adds to it, and that over a collapsed map's."""
        first = dist.rank() * prepared.num_images + part.first
        mine = range(first, first + len(part.indices_B))
        pixels = [clustering.rows(map_BDhw) for map_BDhw in maps]
        total = relative = maps[0].new_zeros(())
        for group in prepared.groups:
            start, stop = max(group.images.start, mine.start), min(group.images.stop, mine.stop)
            if start >= stop:
                continue
            in_part = slice(start - mine.start, stop - mine.start)
            in_group = slice(start - group.images.start, stop - group.images.start)
            terms = [
                clustering.pull_loss(pull, pixels[pull.view][in_part], in_group, self.distance)
                for pull in group.pulls
            ]
            loss = group.weight * torch.stack(terms).sum()
            total = total + loss
            relative = relative + loss.detach() / clustering.collapsed_loss(group.pulls)
        return total, relative

    def _num_clusters(self, step: int, group: int, clusters: tuple[int, int]) -> int:
        generator = numpy_generator(self.seed, "clustering clusters", step, group)
        return int(generator.integers(clusters[0], clusters[1] + 1))


def _distance(cfg: ClusteringConfig) -> clustering.Distance:
    if cfg.distance == "vmf":
        return functools.partial(vmf_distance, kappa=cfg.kappa)
    return euclidean_distance


def _joined(pieces: Sequence[_MaskedView]) -> _MaskedView:
    return _MaskedView(
        torch.cat([piece.cells_Bgg for piece in pieces]),
        torch.cat([piece.ids_BR for piece in pieces]),
    )


def _contrast_monitors(losses: list[DetConLoss]) -> dict[str, Tensor]:
    """Average over the directions."""
    return {
        name: torch.stack([getattr(loss, name).detach() for loss in losses]).mean()
        for name in ("share_positive", "weighted_loss", "positive_cosine", "negative_cosine")
    }


def _target_monitors(masks: Sequence[_MaskedView], targets: Sequence[Targets]) -> dict[str, Tensor]:
    """A ``target_std`` far below 1 / sqrt(embedding) means collapse."""
    present = torch.cat([present_ids(mask.cells_Bgg).sum(dim=1) for mask in masks])
    return {
        "masks_per_view": present.float().mean(),
        "target_std": torch.cat([t.vectors_ND for t in targets]).std(dim=0).mean(),
    }


def build(cfg: PretrainConfig, start: ResNet | None = None) -> Cyborgs:
    """Make the method with the initial weights of ``cfg.seed``, on the trunk ``start`` if given."""
    with seeded(cfg.seed, "initial weights"):
        backbone = ResNet(cfg.arch.depth, cfg.arch.width) if start is None else start
        maps = trunk_maps(compiled=cfg.compile)
        return Cyborgs(backbone, cfg.method, cfg.crop_size, cfg.seed, cfg.precision, maps)
