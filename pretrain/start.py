"""How a run begins: the trunk that it starts from, and what it says before its first step."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from pretrain.config import PretrainConfig
from pretrain.estimate import estimate
from pretrain.memory import shared_batch
from pretrain.schedule import plan_epoch
from sslbench import dist
from sslbench.checkpoint import load_backbone
from sslbench.config import ConfigError
from sslbench.log import RunLog
from sslbench.meter import forget_peak_memory
from sslbench.resnet import ResNet


def starting_trunk(path: Path, cfg: PretrainConfig) -> ResNet:
    """Read the trunk that a run starts from.

    Raises:
        CheckpointError: the file holds no trunk that is understood.
        ConfigError: it holds one of another depth or width.
    """
    found = load_backbone(path, cfg.init_branch)
    if (found.depth, found.width) != (cfg.arch.depth, cfg.arch.width):
        raise ConfigError(
            f"init: {path} holds a ResNet-{found.depth} of width {found.width:g}, the config asks "
            f"for ResNet-{cfg.arch.depth} of width {cfg.arch.width:g}; "
            f"say arch.depth={found.depth} arch.width={found.width:g}"
        )
    return found.build()


def say_plan(
    log: RunLog,
    cfg: PretrainConfig,
    method: Any,
    *,
    num_images: int,
    steps_per_epoch: int,
    device: torch.device,
    is_new: bool,
    stored: Path | None,
) -> None:
    """Say before the first step what the run will do, how long and in how much memory.

    Args:
        method: on the device; the estimate's trial steps are made on a copy.
        is_new: whether no step was made before; a continued run is not estimated again.
        stored: masks made before, where it uses such.
    """
    schedule = cfg.schedule
    plans = {e: plan_epoch(cfg.method, e) for e in range(1, schedule.epochs + 1)}
    refreshed = [e for e, plan in plans.items() if plan.refresh_masks]
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    drops = f"drops at {_listed(schedule.lr_drops)}"
    log.info(
        f"{num_images} images; {schedule.epochs} epochs of {steps_per_epoch} steps "
        f"of {cfg.batch_size} in {dist.world_size() * cfg.accumulate} parts, "
        f"{schedule.epochs * steps_per_epoch} steps; {trained / 1e6:.1f} M weights; {device}"
    )
    log.info(
        f"learning rate {'cosine' if schedule.lr_shape == 'cosine' else drops} after "
        f"{schedule.lr_warmup_epochs:g} epochs; kept epochs {_listed(schedule.keep_epochs)}"
    )
    masks = cfg.method.mask_config
    if refreshed and masks is not None:
        warmup = sum(not plan.contrast for plan in plans.values())
        source = stored or masks.source
        log.info(f"warm-up {warmup} epochs; masks from {source} before epochs {_listed(refreshed)}")
    if is_new:
        with shared_batch(cfg).out_of_memory_explained():
            throwaway = copy.deepcopy(method)
            needed = estimate(throwaway, cfg, steps_per_epoch, device)
        log.info(str(needed))
        forget_peak_memory(device)
    for remark in method.remarks():
        log.info(remark)


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers) or "none"
