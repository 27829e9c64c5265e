"""Algorithm 3 of the paper, the learning rate and the target's rate, as pure functions of time."""

import math
from dataclasses import dataclass, replace

from pretrain.config import (
    FIXED_SOURCES,
    CyborgsConfig,
    MethodConfig,
    OptimizerConfig,
    ScheduleConfig,
)

REFERENCE_BATCH = 64  # the batch that ``optimizer.lr`` is given for
WARMUP_START = 0.01  # fraction of the learning rate in the very first step


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch does."""

    refresh_masks: bool  # make a new mask generation before the epoch
    contrast: bool  # mask-dependent contrastive loss on
    clustering_weight: float  # 0 = no clustering loss, not computed
    clusters: tuple[int, int]  # range of K in the clustering loss, both ends included
    separate: bool = False  # contrast and clustering in updates of their own

    @property
    def updates(self) -> "tuple[EpochPlan, ...]":
        """The updates of one step, in order; each has views of its own."""
        if not (self.separate and self.contrast and self.clustering_weight > 0):
            return (self,)
        return replace(self, clustering_weight=0.0), replace(self, contrast=False)


EVERY_EPOCH_ALIKE = EpochPlan(  # of a method without masks
    refresh_masks=False, contrast=True, clustering_weight=0.0, clusters=(0, 0)
)


def plan_epoch(cfg: MethodConfig, epoch: int) -> EpochPlan:
    """Say what ``epoch`` (from 1) does: warm-up, refresh, contrast, periodic clustering."""
    if epoch < 1:
        raise ValueError(f"epochs count from 1, got {epoch}")
    if not isinstance(cfg, CyborgsConfig):
        return EVERY_EPOCH_ALIKE
    clustering = cfg.clustering
    if epoch <= cfg.warmup_epochs:
        warmup = (clustering.warmup_clusters, clustering.warmup_clusters)
        return EpochPlan(
            refresh_masks=False, contrast=False, clustering_weight=1.0, clusters=warmup
        )
    first = epoch == cfg.warmup_epochs + 1
    return EpochPlan(
        refresh_masks=first
        or _due(epoch - (cfg.refresh_masks_at == "end"), cfg.refresh_masks_every),
        contrast=True,
        clustering_weight=clustering.weight if _due(epoch, cfg.clustering_every) else 0.0,
        clusters=(clustering.min_clusters, clustering.max_clusters),
        separate=clustering.separate_step,
    )


def _due(epoch: int, every: int) -> bool:
    return every > 0 and epoch > 0 and epoch % every == 0


def mask_epoch(cfg: MethodConfig, epoch: int) -> int | None:
    """Epoch whose refresh made the masks that ``epoch`` uses; None while there are none."""
    for candidate in range(epoch, 0, -1):
        if plan_epoch(cfg, candidate).refresh_masks:
            return candidate
    return None


def needs_calibration(cfg: CyborgsConfig, epoch: int) -> bool:
    """Whether BatchNorm has seen nothing when the masks of ``epoch`` are made (W = 0)."""
    return epoch == 1 and cfg.warmup_epochs == 0 and cfg.masks.source not in FIXED_SOURCES


def lr_at(
    optimizer: OptimizerConfig, schedule: ScheduleConfig, batch_size: int, elapsed: float
) -> float:
    """Learning rate after ``elapsed`` epochs (0 before the first step), set in every step."""
    peak = optimizer.lr * batch_size / REFERENCE_BATCH
    warmup = schedule.lr_warmup_epochs
    if elapsed < warmup:
        return peak * (WARMUP_START + (1 - WARMUP_START) * elapsed / warmup)
    if schedule.lr_shape == "cosine":
        done = (elapsed - warmup) / (schedule.epochs - warmup)
        return peak * (1 + math.cos(math.pi * min(done, 1.0))) / 2
    return peak * 0.1 ** sum(elapsed >= drop for drop in schedule.lr_drops)


def target_rate_at(cfg: CyborgsConfig, progress: float) -> float:
    """Averaging rate tau of the target network.

    Args:
        progress: share of all steps that are done, warm-up included, in [0, 1].
    """
    if cfg.target_schedule == "constant":
        return cfg.target_rate
    return 1 - (1 - cfg.target_rate) * (math.cos(math.pi * progress) + 1) / 2
