"""CYBORGS: contrast between bootstrapped masks, plus clustering consistency (paper Sec. 3).

Shape letters: B images, S pixels, R sampled masks, D channels, h x w cells of a map, g x g contrast
cells.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.config import ClusteringConfig, CyborgsConfig, PretrainConfig
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


class Cyborgs(nn.Module):
    """The method as the loop sees it.

    Args:
        backbone: the trunk.
        cfg: the method's own keys.
        crop_size: side of the views.
        seed: of K and of the starts of k-means within the clustering loss.
    """

    def __init__(self, backbone: ResNet, cfg: CyborgsConfig, crop_size: int, seed: int) -> None:
        super().__init__()
        self.cfg, self.seed = cfg, seed
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

    def forward(self, batch: Batch, plan: EpochPlan) -> StepOutput:
        """Compute the loss terms that ``plan`` asks for; what it does not need is not computed."""
        layers = self._layers(plan)
        online = [self.online.backbone.maps(view.images_B3SS, layers) for view in batch.views]
        with torch.no_grad():
            target = [self.target.backbone.maps(view.images_B3SS, layers) for view in batch.views]
        terms: dict[str, Tensor] = {}
        monitors: dict[str, Tensor] = {}
        if plan.contrast:
            terms["contrast"], monitors = self._contrast(batch.views, online, target)
        if plan.clustering_weight > 0:
            loss, watched = self._clustering(
                batch,
                [maps[self.clustering_layer] for maps in online],
                [maps[self.clustering_layer] for maps in target],
                plan.clusters,
            )
            terms["clustering"] = plan.clustering_weight * loss
            monitors |= watched
        return StepOutput(terms, monitors)

    @torch.no_grad()
    def update_target(self, progress: float) -> None:
        """Move the target's parameters towards the online network's."""
        rate = target_rate_at(self.cfg, progress)
        update_average(self.target.backbone, self.online.backbone, rate)
        update_average(self.target.projector, self.online.projector, rate)

    def _layers(self, plan: EpochPlan) -> list[str]:
        """Layers a step needs; the forward pass stops at the deepest."""
        contrast = self.contrast_layers if plan.contrast else ()
        clustered = (self.clustering_layer,) if plan.clustering_weight > 0 else ()
        return list(dict.fromkeys((*clustered, *contrast)))

    def _contrast(
        self,
        views: Sequence[View],
        online: list[dict[str, Tensor]],
        target: list[dict[str, Tensor]],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        masks = [self._draw_masks(view) for view in views]
        projections = [
            self.online.projector(self._mask_vectors(*pair))
            for pair in zip(online, masks, strict=True)
        ]
        anchors = [self.online.predictor(vectors_BRD) for vectors_BRD in projections]
        with torch.no_grad():
            targets = [
                Targets.gather(self.target.projector(self._mask_vectors(maps, mask)), mask.ids_BR)
                for maps, mask in zip(target, masks, strict=True)
            ]
        losses = [
            detcon_loss(
                anchors[own], masks[own].ids_BR, targets[own], targets[other], self.cfg.temperature
            )
            for own, other in ((0, 1), (1, 0))
        ]
        total = losses[0].loss + losses[1].loss
        return total, _contrast_monitors(losses, masks, targets)

    def _draw_masks(self, view: View) -> _MaskedView:
        assert view.labels_BSS is not None, "a contrastive epoch has masks"
        cells_Bgg = majority_labels(view.labels_BSS, self.cfg.contrast_grid)
        return _MaskedView(cells_Bgg, sample_ids(cells_Bgg, view.uniforms_BR))

    def _mask_vectors(self, maps: dict[str, Tensor], masks: _MaskedView) -> Tensor:
        fused = fuse(maps, self.contrast_layers, self.cfg.contrast_grid, self.cfg.fusion)
        return pool(fused, masks.cells_Bgg, masks.ids_BR)

    def _clustering(
        self,
        batch: Batch,
        online: list[Tensor],
        target: list[Tensor],
        clusters: tuple[int, int],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of Eq. 3 over fixed groups of the global batch, weighted by their images."""
        groups = clustering.image_groups(len(online[0]), self.cfg.clustering.images_per_group)
        total, watched = online[0].new_zeros(()), []
        for number, images in enumerate(groups, start=dist.rank() * len(groups)):
            k = self._num_clusters(batch.step, number, clusters)
            prototypes = [
                clustering.cluster(
                    target[view][images],
                    k,
                    torch_generator(self.seed, "clustering start", batch.step, number, view),
                    self.cfg.clustering.iterations,
                )
                for view in range(2)
            ]
            loss = clustering.consistency_loss(
                [map_BDhw[images] for map_BDhw in online],
                prototypes,
                [view.geometry[images] for view in batch.views],
                self.distance,
                aligned=self.cfg.clustering.correspondence == "aligned",
            )
            total = total + loss * (images.stop - images.start) / len(online[0])
            watched.append(clustering.monitors(prototypes[0], loss))
        return total, {name: torch.stack([w[name] for w in watched]).mean() for name in watched[0]}

    def _num_clusters(self, step: int, group: int, clusters: tuple[int, int]) -> int:
        generator = numpy_generator(self.seed, "clustering clusters", step, group)
        return int(generator.integers(clusters[0], clusters[1] + 1))


def _distance(cfg: ClusteringConfig) -> clustering.Distance:
    if cfg.distance == "vmf":
        return functools.partial(vmf_distance, kappa=cfg.kappa)
    return euclidean_distance


@torch.no_grad()
def _contrast_monitors(
    losses: list[DetConLoss], masks: list[_MaskedView], targets: list[Targets]
) -> dict[str, Tensor]:
    """Average over the directions; a ``target_std`` far below 1 / sqrt(D) means collapse."""
    means = {
        name: torch.stack([getattr(loss, name) for loss in losses]).mean()
        for name in ("share_positive", "weighted_loss", "positive_cosine", "negative_cosine")
    }
    present = torch.cat([present_ids(mask.cells_Bgg).sum(dim=1) for mask in masks])
    means["masks_per_view"] = present.float().mean()
    means["target_std"] = torch.cat([t.vectors_ND for t in targets]).std(dim=0).mean()
    return means


def build(cfg: PretrainConfig) -> Cyborgs:
    """Make the method with the initial weights of ``cfg.seed``."""
    with seeded(cfg.seed, "initial weights"):
        backbone = ResNet(cfg.arch.depth, cfg.arch.width)
        return Cyborgs(backbone, cfg.method, cfg.crop_size, cfg.seed)
