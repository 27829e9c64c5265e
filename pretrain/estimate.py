"""How long a run will take and how much memory it needs, measured on a step or two of each kind.

Shape letters: B images, S pixels along a side, R sampled masks.
"""

import time
from collections import Counter
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import photometry
from pretrain.config import PretrainConfig
from pretrain.data import Batch, View, ViewSpec
from pretrain.losses.clustering import Geometry
from pretrain.plan import EpochPlan
from pretrain.schedule import plan_epoch
from sslbench import dist

CPU_PIXELS = 8 * 224 * 224  # measured at a time on the CPU, where time is proportional from there
MASKS_PRESENT = 20  # ids among which the blocks of an image draw theirs
BLOCKS = 7  # along a side of a view


@dataclass(frozen=True)
class Estimate:
    """What a whole run takes; making masks and waiting for data come on top."""

    hours: float
    gib: float  # that one process holds in its largest step, without optimizer state
    device: str  # "cpu" or "cuda"

    def __str__(self) -> str:
        kind = "GPU memory" if self.device == "cuda" else "memory"
        time = f"{self.hours:.1f} hours" if self.hours >= 1 else f"{self.hours * 60:.1f} minutes"
        return f"about {time} of steps, {self.gib:.1f} GiB of {kind}, besides masks and data"


def estimate(
    method: nn.Module, cfg: PretrainConfig, steps_per_epoch: int, device: torch.device
) -> Estimate:
    """Measure one step of every kind that the run has.

    Args:
        method: a throwaway in train mode on the device; its statistics are spoilt, its gradients
            left behind.
    """
    plans = Counter(_kind(plan_epoch(cfg.method, e)) for e in range(1, cfg.schedule.epochs + 1))
    whole = cfg.batch_size // (dist.world_size() * cfg.accumulate)
    fitting = max(2, CPU_PIXELS // cfg.crop_size**2)
    measured = whole if device.type == "cuda" else min(whole, fitting)
    batch = synthetic_batch(method.view_spec, measured, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, kept_per_image = 0.0, 0.0
    for plan, epochs in plans.items():
        part = sum(_seconds(method, batch, p) for p in plan.updates) * whole / measured
        seconds += part * cfg.accumulate * steps_per_epoch * epochs
        if device.type != "cuda":
            found = [_kept_per_image(method, p) for p in plan.updates]
            kept_per_image = max(kept_per_image, *found)
    held = _parameter_bytes(method) + kept_per_image * whole
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device)
        torch.cuda.empty_cache()
    return Estimate(seconds / 3600, held / 2**30, device.type)


def _parameter_bytes(method: nn.Module) -> int:
    """Of all weights, and of the gradients of those that are trained."""
    return sum(p.nbytes * (1 + p.requires_grad) for p in method.parameters())


def _kept_per_image(method: nn.Module, plan: EpochPlan) -> float:
    """Bytes that a forward pass keeps for the backward pass; the CPU has no meter for it."""
    images = 2  # the fewest that BatchNorm takes
    batch = synthetic_batch(method.view_spec, images, next(method.parameters()).device)
    weights = {p.data_ptr() for p in method.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = method(batch, method.prepare([batch], plan), plan)  # noqa: F841, holds the graph
    return sum(kept.values()) / images


def _kind(plan: EpochPlan) -> EpochPlan:
    """Make epochs that cost the same the same."""
    middle = sum(plan.clusters) // 2
    return replace(plan, refresh_masks=False, clusters=(middle, middle))


def _seconds(method: nn.Module, batch: Batch, plan: EpochPlan) -> float:
    """The faster of two: the first warms up."""
    found = []
    for _ in range(2):
        method.zero_grad(set_to_none=True)
        began = time.perf_counter()
        output = method(batch, method.prepare([batch], plan), plan)
        torch.stack(list(output.terms.values())).sum().backward()
        if batch.views[0].images_B3SS.device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found)


def synthetic_batch(spec: ViewSpec, num_images: int, device: torch.device) -> Batch:
    """Random pixels with blocks of random labels, so that masks have sizes as real ones have."""
    generator = torch.Generator().manual_seed(0)
    size = spec.crop_size

    def view() -> View:
        pixels_B3SS = torch.rand(num_images, 3, size, size, generator=generator).to(device)
        blocks = torch.randint(MASKS_PRESENT, (num_images, 1, BLOCKS, BLOCKS), generator=generator)
        labels_BSS = F.interpolate(blocks.float(), (size, size))[:, 0].to(device, torch.uint8)
        box_B4 = torch.tensor([[0, 0, size, size]] * num_images, dtype=torch.float64)
        flip_B = torch.zeros(num_images, dtype=torch.bool)
        uniforms_BR = torch.rand(
            num_images, spec.num_uniforms, generator=generator, dtype=torch.float64
        )
        return View(
            images_B3SS=pixels_B3SS.contiguous(memory_format=torch.channels_last),
            labels_BSS=labels_BSS,
            geometry=Geometry(box_B4.to(device), flip_B.to(device)),
            draws=photometry.Draws.none(num_images),
            uniforms_BR=uniforms_BR.to(device),
        )

    views = tuple(view() for _ in spec.recipes)
    return Batch(step=0, indices_B=torch.arange(num_images), views=views)
