"""CYBORGS: contrast between bootstrapped masks, plus clustering consistency (paper Sec. 3).

Shape letters: B images, S pixels, R sampled masks, D channels, h x w cells of a map, g x g contrast
cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.checkpoint import NotFiniteError
from pretrain.compiled import Maps, trunk_maps
from pretrain.config import FUSED, CyborgsConfig, Precision, PretrainConfig
from pretrain.data import Batch, View, ViewSpec
from pretrain.ema import frozen_copy, update_average
from pretrain.fusion import fuse
from pretrain.heads import MLPHead
from pretrain.losses import clustering
from pretrain.losses.detcon import DetConLoss, Targets, detcon_loss
from pretrain.methods.base import StepOutput
from pretrain.methods.consistency import Consistency, Group
from pretrain.photometry import Recipe
from pretrain.plan import EpochPlan
from pretrain.pooling import (
    majority_labels,
    merge_ids,
    pool,
    present_ids,
    sample_different_ids,
    sample_ids,
)
from pretrain.schedule import target_rate_at
from sslbench import dist
from sslbench.batchnorm import statistics_kept
from sslbench.precision import at_least_fp32, autocast
from sslbench.resnet import ResNet, resolve_layer
from sslbench.rng import seeded

# BYOL's asymmetric pair: always blurred; rarely blurred, sometimes solarised.
RECIPES = (
    Recipe(blur_probability=1.0, solarize_probability=0.0),
    Recipe(blur_probability=0.1, solarize_probability=0.2),
)


MIN_POINTS = 8  # of a cluster on average


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
    ids_BR: Tensor  # for the online network
    target_ids_BR: Tensor  # the same ones, unless each network draws for itself

    def __getitem__(self, images: slice) -> "_MaskedView":
        return _MaskedView(self.cells_Bgg[images], self.ids_BR[images], self.target_ids_BR[images])


@dataclass(frozen=True)
class Prepared:
    """What every part of a step is compared with."""

    num_images: int  # of this process
    masks: tuple[_MaskedView, ...]  # of this process's images, per view
    targets: tuple[Targets, ...]  # of all processes, per view
    groups: tuple[Group, ...]  # those that hold images of this process
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
        self.cfg, self.precision = cfg, precision
        self.view_spec = ViewSpec(
            RECIPES,
            crop_size,
            num_uniforms=cfg.uniforms_per_view,
            interpolation=cfg.views.interpolation,
            saturated=cfg.views.saturation,
        )
        self.contrast_layers = tuple(resolve_layer(n, backbone.depth) for n in cfg.contrast_layers)
        layer = cfg.clustering.layer
        self.clustering_layer = layer if layer == FUSED else resolve_layer(layer, backbone.depth)
        self.consistency = Consistency(cfg.clustering, seed)
        channels = sum(backbone.channels(layer) for layer in self.contrast_layers)
        self.online = Branch(backbone, self._head(channels), self._head(cfg.embedding))
        # In train mode for good: its BatchNorm uses batch statistics, as the online one's does.
        self.target = Branch(
            frozen_copy(backbone), frozen_copy(self.online.projector), predictor=None
        )

    def _head(self, inputs: int) -> MLPHead:
        cfg = self.cfg
        per_slot = cfg.mlp_norm == "slots"
        return MLPHead(inputs, cfg.hidden, cfg.embedding, bias=cfg.last_bias, per_slot=per_slot)

    @property
    def online_backbone(self) -> ResNet:
        """The trunk that is trained."""
        return self.online.backbone

    def remarks(self) -> list[str]:
        """Warn of clusterings with hardly more points than clusters."""
        cfg, crop = self.cfg.clustering, self.view_spec.crop_size
        side = self.cfg.contrast_grid
        if self.clustering_layer != FUSED:
            side = -(-crop // ResNet.strides[self.clustering_layer.split(".")[0]])
        points = cfg.images_per_group * side**2
        is_used = self.cfg.clustering_every > 0 and cfg.weight > 0
        if not is_used or points >= MIN_POINTS * cfg.max_clusters:
            return []
        return [
            f"the clustering loss groups {points} points into up to {cfg.max_clusters} clusters: "
            f"fewer than {MIN_POINTS} each; lower method.clustering.max_clusters"
        ]

    @torch.no_grad()
    def prepare(self, parts: Sequence[Batch], plan: EpochPlan) -> Prepared:
        """Run the target network on every part; gather its vectors, cluster its maps."""
        num_images = sum(len(part.indices_B) for part in parts)
        masks: list[list[_MaskedView]] = [[], []]
        vectors: list[list[Tensor]] = [[], []]
        maps_BDhw: list[list[Tensor]] = [[], []]
        for part in parts:
            for index, view in enumerate(part.views):
                maps = self._maps(self.target, view, self._wanted(plan, index, of_target=True))
                if plan.contrast:
                    drawn = self._draw_masks(view)
                    masks[index].append(drawn)
                    pooled_BRD = pool(maps[FUSED], drawn.cells_Bgg, drawn.target_ids_BR)
                    vectors[index].append(self._project(self.target, pooled_BRD))
                if plan.clustering_weight > 0:
                    maps_BDhw[index].append(self._clustered_map(view, index, maps))
        groups, monitors = (), {}
        if plan.clustering_weight > 0:
            groups, monitors = self._make_groups(parts, maps_BDhw, plan)
        joined_masks = tuple(_joined(pieces) for pieces in masks if pieces)
        targets = tuple(
            Targets.gather(torch.cat(pieces), mask.target_ids_BR)
            for pieces, mask in zip(vectors, joined_masks, strict=False)
        )
        if plan.contrast:
            monitors |= _target_monitors(joined_masks, targets)
        return Prepared(num_images, joined_masks, targets, groups, monitors)

    def forward(self, part: Batch, prepared: Prepared, plan: EpochPlan) -> StepOutput:
        """Compute the loss terms that ``plan`` asks for; what it does not need is not computed."""
        online = [
            self._maps(self.online, view, self._wanted(plan, index, of_target=False))
            for index, view in enumerate(part.views)
        ]
        terms: dict[str, Tensor] = {}
        monitors = dict(prepared.monitors)
        if plan.contrast:
            loss, watched = self._contrast(part, [maps[FUSED] for maps in online], prepared)
            terms["contrast"] = loss * len(part.indices_B) / prepared.num_images
            monitors |= watched
        if plan.clustering_weight > 0:
            maps = [m[self.clustering_layer] for m in online if self.clustering_layer in m]
            loss, relative = self.consistency.loss(part, maps, prepared.groups, prepared.num_images)
            terms["clustering"] = plan.clustering_weight * loss
            if self.cfg.clustering.distance == "vmf":  # by the other a collapsed map costs nothing
                share = prepared.num_images / len(part.indices_B)
                monitors["clustering_relative"] = relative * share
        return StepOutput(terms, monitors)

    @torch.no_grad()
    def update_target(self, progress: float) -> dict[str, float]:
        """Move the target's parameters towards the online network's."""
        rate = target_rate_at(self.cfg, progress)
        update_average(self.target.backbone, self.online.backbone, rate)
        update_average(self.target.projector, self.online.projector, rate)
        return {"target_rate": rate}

    def _wanted(self, plan: EpochPlan, view: int, *, of_target: bool) -> list[str]:
        """Maps that a network has to make of a view."""
        # To the letter, the online network clusters view 1 and the target network view 2.
        sees = not self.consistency.literal or of_target == (view == 1)
        clustered = plan.clustering_weight > 0 and sees
        wanted = [self.clustering_layer] * clustered + [FUSED] * plan.contrast
        return list(dict.fromkeys(wanted))

    def _maps(self, branch: Branch, view: View, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Float32 maps; the forward pass stops at the deepest one, and is left out for none."""
        if not wanted:
            return {}
        fused = self.contrast_layers if FUSED in wanted else ()
        layers = list(dict.fromkeys((*(name for name in wanted if name != FUSED), *fused)))
        with autocast(self.precision, view.images_B3SS.device):
            made = self.trunk_maps(branch.backbone, view.images_B3SS, layers)
        maps = {layer: at_least_fp32(map_BDhw) for layer, map_BDhw in made.items()}
        if fused:
            cfg = self.cfg
            maps[FUSED] = fuse(
                maps, fused, cfg.contrast_grid, cfg.fusion, normalise=cfg.normalise_layers
            )
        return {name: maps[name] for name in wanted}

    def _clustered_map(self, view: View, index: int, target: dict[str, Tensor]) -> Tensor:
        """The map of a view that prototypes are made of."""
        if self.clustering_layer in target and not (self.consistency.literal and index == 0):
            return target[self.clustering_layer]
        # The pass with gradient repeats it, part by part: statistics must not see it twice.
        with statistics_kept(self.online.backbone):
            return self._maps(self.online, view, [self.clustering_layer])[self.clustering_layer]

    def _make_groups(
        self, parts: Sequence[Batch], maps: list[list[Tensor]], plan: EpochPlan
    ) -> tuple[tuple[Group, ...], dict[str, Tensor]]:
        if dist.any_true(not all(bool(m.isfinite().all()) for pair in maps for m in pair)):
            raise NotFiniteError(f"features of {self.clustering_layer}")
        geometry = [clustering.Geometry.join([p.views[v].geometry for p in parts]) for v in (0, 1)]
        joined = [torch.cat(pieces) for pieces in maps]
        return self.consistency.groups(parts[0].step, joined, geometry, plan)

    def _draw_masks(self, view: View) -> _MaskedView:
        assert view.labels_BSS is not None, "a contrastive epoch has masks"
        cfg, uniforms = self.cfg, view.uniforms_BR
        labels_BSS = merge_ids(view.labels_BSS, cfg.mask_ids)
        cells_Bgg = majority_labels(labels_BSS, cfg.contrast_grid)
        if cfg.sampling == "present":
            ids_BR = sample_ids(cells_Bgg, uniforms)
            return _MaskedView(cells_Bgg, ids_BR, ids_BR)
        own, targets = uniforms.split(cfg.mask_ids, dim=1)
        return _MaskedView(
            cells_Bgg,
            sample_different_ids(cells_Bgg, own, cfg.masks_per_view),
            sample_different_ids(cells_Bgg, targets, cfg.masks_per_view),
        )

    def _project(self, branch: Branch, pooled_BRD: Tensor) -> Tensor:
        """Projection of the features averaged over each mask, (B, R, embedding)."""
        with autocast(self.precision, pooled_BRD.device):
            projected: Tensor = branch.projector(pooled_BRD)
        return at_least_fp32(projected)

    def _contrast(
        self, part: Batch, fused: Sequence[Tensor], prepared: Prepared
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 2 in both directions: mean over the part's anchors."""
        first = dist.rank() * prepared.num_images + part.first
        losses = []
        for own, other in ((0, 1), (1, 0)):
            masks = prepared.masks[own][part.images]
            pooled_BRD = pool(fused[own], masks.cells_Bgg, masks.ids_BR)
            projected = self._project(self.online, pooled_BRD)
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


def _joined(pieces: Sequence[_MaskedView]) -> _MaskedView:
    return _MaskedView(
        torch.cat([piece.cells_Bgg for piece in pieces]),
        torch.cat([piece.ids_BR for piece in pieces]),
        torch.cat([piece.target_ids_BR for piece in pieces]),
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
        "distinct_ids": torch.cat([_num_distinct(mask.ids_BR) for mask in masks]).float().mean(),
        "target_std": torch.cat([t.vectors_ND for t in targets]).std(dim=0).mean(),
    }


def _num_distinct(ids_BR: Tensor) -> Tensor:
    return (ids_BR.sort(dim=1).values.diff(dim=1) != 0).sum(dim=1) + 1


def build(cfg: PretrainConfig, start: ResNet | None = None) -> Cyborgs:
    """Make the method with the initial weights of ``cfg.seed``, on the trunk ``start`` if given."""
    with seeded(cfg.seed, "initial weights"):
        backbone = ResNet(cfg.arch.depth, cfg.arch.width) if start is None else start
        maps = trunk_maps(compiled=cfg.compile)
        return Cyborgs(backbone, cfg.method, cfg.crop_size, cfg.seed, cfg.precision, maps)
