"""What the pretraining step's benchmark times: whole steps, their parts, and the bare network."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.stopwatch import Stopwatch
from pretrain.config import PretrainConfig
from pretrain.data import Batch, View, to_device
from pretrain.estimate import synthetic_batch
from pretrain.fusion import fuse
from pretrain.losses import clustering
from pretrain.losses.detcon import Targets
from pretrain.methods import cyborgs as cyborgs_module
from pretrain.methods.cyborgs import RECIPES, build
from pretrain.optimizers import build_optimizer
from pretrain.photometry import Draws
from pretrain.plan import EpochPlan
from pretrain.train import sum_of
from sslbench.precision import at_least_fp32, autocast
from sslbench.rng import numpy_generator

PLAIN = EpochPlan(refresh_masks=False, contrast=True, clustering_weight=0.0, clusters=(2, 256))
CLUSTERED = EpochPlan(
    refresh_masks=False, contrast=True, clustering_weight=0.1, clusters=(129, 129)
)  # the mean of 2..256
BARE = "bare network"
PLANS = {"plain": PLAIN, "with clustering": CLUSTERED}
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}

Run = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Setting:
    """How the networks compute."""

    precision: str  # fp32 or bf16
    memory_format: str  # key of FORMATS


class Bench:
    """A method and a batch in one setting, and what is timed of them."""

    def __init__(self, setting: Setting, num_images: int, device: torch.device) -> None:
        settings = {"batch_size": num_images, "precision": setting.precision}
        self.cfg = PretrainConfig.model_validate(settings)
        self.device, self.memory_format = device, FORMATS[setting.memory_format]
        self.method = build(self.cfg).to(device, memory_format=self.memory_format).train()
        # Through the trunk itself, where a stopwatch can tell the online pass from the target's.
        self.method.trunk_maps = lambda trunk, *arguments: trunk.maps(*arguments)
        self.batch = self._formatted(synthetic_batch(self.method.view_spec, num_images, device))
        self.optimizer = build_optimizer(self.cfg.optimizer, self.method)
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-6  # the weights must not run away over the repeats

    def runs(self) -> dict[str, Run]:
        """List the bare network and every kind of step."""
        steps = {name: self._step(plan) for name, plan in PLANS.items()}
        return {BARE: self._bare, **steps}

    def run_by_part(self, plan: EpochPlan, watch: Stopwatch) -> Run:
        """Augmentation and the step, clocked by part."""
        raw, step = _unaugmented(self.batch), self._step(plan)

        def run() -> None:
            with watch.lap(), watch.watching(self._calls()):
                with watch.part("augmentation"):
                    to_device(raw, raw.step, self.device)
                step()

        return run

    def _calls(self) -> dict[str, list[tuple[Any, str]]]:
        """Part of the step -> where the loop looks its functions up."""
        online, target = self.method.online, self.method.target
        pooling = ("majority_labels", "sample_ids", "fuse", "pool")
        return {
            "pooling and sampling": [(cyborgs_module, name) for name in pooling],
            "online forward": [(online.backbone, "maps")],
            "target forward": [(target.backbone, "maps")],
            "heads": [
                (head, "forward") for head in (online.projector, online.predictor, target.projector)
            ],
            "loss": [
                (cyborgs_module, "detcon_loss"),
                (Targets, "gather"),
                (clustering, "make_pulls"),
                (clustering, "pull_loss"),
            ],
            "clustering k-means": [(clustering, "cluster")],
            "backward": [(Tensor, "backward")],
            "optimizer": [(self.optimizer, "step")],
            "moving average": [(self.method, "update_target")],
        }

    def _step(self, plan: EpochPlan) -> Run:
        """The step as the loop takes it."""
        method = self.method

        def run() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            parts = self.batch.parts(1)
            output = method(parts[0], method.prepare(parts, plan), plan)
            sum_of(output.terms).backward()
            self.optimizer.step()
            method.update_target(0.5)

        return run

    def _bare(self) -> None:
        """Networks alone."""
        method = self.method
        method.zero_grad(set_to_none=True)
        total = self.batch.views[0].images_B3SS.new_zeros(())
        for view in self.batch.views:
            projected = self._rows(method.online, view)
            with autocast(self.cfg.precision, self.device):
                total = total + method.online.predictor(projected).float().square().mean()
        with torch.no_grad():
            for view in self.batch.views:
                self._rows(method.target, view)
        total.backward()

    def _rows(self, branch: torch.nn.Module, view: View) -> Tensor:
        layers, count = self.method.contrast_layers, self.cfg.method.masks_per_view
        with autocast(self.cfg.precision, self.device):
            maps = branch.backbone.maps(view.images_B3SS, layers)
            maps = {name: at_least_fp32(map_BDhw) for name, map_BDhw in maps.items()}
            fused = fuse(maps, layers, self.cfg.method.contrast_grid, self.cfg.method.fusion)
            vectors = fused.flatten(2)[:, :, :count].transpose(1, 2)
            projected: Tensor = branch.projector(vectors)
        return projected

    def _formatted(self, batch: Batch) -> Batch:
        views = (
            dataclasses.replace(
                view, images_B3SS=view.images_B3SS.contiguous(memory_format=self.memory_format)
            )
            for view in batch.views
        )
        return dataclasses.replace(batch, views=tuple(views))


def _unaugmented(batch: Batch) -> Batch:
    """The batch as the loader would hand it over: uint8, on the CPU, with draws."""
    views = []
    for index, (view, recipe) in enumerate(zip(batch.views, RECIPES, strict=True)):
        generator = numpy_generator(0, "benchmark", index)
        draws = [Draws.draw(generator, recipe) for _ in batch.indices_B]
        pixels_B3SS = (view.images_B3SS * 255).to("cpu", torch.uint8)
        views.append(dataclasses.replace(view, images_B3SS=pixels_B3SS, draws=Draws.stack(draws)))
    return dataclasses.replace(batch, views=tuple(views))
