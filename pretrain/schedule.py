"""The course of a run, the learning rate and the target's rate, as pure functions of time."""

import math

from pretrain.config import (
    FIXED_SOURCES,
    CyborgsConfig,
    MethodConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from pretrain.plan import EpochPlan

REFERENCE_BATCH = 64  # the batch that ``optimizer.lr`` is given for
WARMUP_START = 0.01  # fraction of the learning rate in the very first step


def plan_epoch(cfg: MethodConfig, epoch: int) -> EpochPlan:
    """Say what ``epoch`` (from 1) does."""
    if epoch < 1:
        raise ValueError(f"epochs count from 1, got {epoch}")
    return cfg.plan(epoch)


def mask_epoch(cfg: MethodConfig, epoch: int) -> int | None:
    """Epoch whose refresh made the masks that ``epoch`` uses; None while there are none."""
    for candidate in range(epoch, 0, -1):
        if plan_epoch(cfg, candidate).refresh_masks:
            return candidate
    return None


def needs_calibration(cfg: MethodConfig, epoch: int) -> bool:
    """Whether BatchNorm has seen nothing when the masks of ``epoch`` are made (W = 0)."""
    masks = cfg.mask_config
    bootstrapped = masks is not None and masks.source not in FIXED_SOURCES
    return epoch == 1 and bootstrapped and plan_epoch(cfg, 1).refresh_masks


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
