"""The fine-tuning loop of the detectors: any engine, exact resume, one checkpoint file.

A batch, its augmentation and the model's own sampling are functions of (seed, iteration), so a run
that was killed continues bit for bit on the CPU.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from sslbench.files import write_torch
from sslbench.log import RunLog
from sslbench.rng import seeded
from transfer.engines.base import Engine
from transfer.engines.recipe import Recipe
from transfer.loader import TrainingBatches
from transfer.precise_bn import precise_bn
from transfer.task import TaskConfig

FORMAT, VERSION = "sslbench.detection", 1
MAX_LOG_INTERVAL = 10  # iterations; short runs are logged more often


class TrainingError(ValueError):
    """Training that cannot go on, or a checkpoint that is not this run's."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate by iteration: linear warm-up, then steps down."""

    num_iterations: int
    base_lr: float
    milestones: tuple[int, ...]
    gamma: float
    warmup_iterations: int
    warmup_factor: float

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Read the recipe's ``SOLVER`` keys."""
        return cls(
            recipe["SOLVER.MAX_ITER"],
            recipe["SOLVER.BASE_LR"],
            tuple(recipe["SOLVER.STEPS"]),
            recipe["SOLVER.GAMMA"],
            recipe["SOLVER.WARMUP_ITERS"],
            recipe["SOLVER.WARMUP_FACTOR"],
        )

    def lr_at(self, iteration: int) -> float:
        """Learning rate of one iteration, counted from 0."""
        lr = self.base_lr * self.gamma ** bisect_right(self.milestones, iteration)
        if iteration >= self.warmup_iterations:
            return lr
        done = iteration / self.warmup_iterations
        return lr * (self.warmup_factor * (1 - done) + done)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: norms with their own weight decay, all others."""
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm)
        chosen = norms if is_norm else others
        chosen += [p for p in module.parameters(recurse=False) if p.requires_grad]
    return [
        {"params": others, "weight_decay": recipe["SOLVER.WEIGHT_DECAY"]},
        {"params": norms, "weight_decay": recipe["SOLVER.WEIGHT_DECAY_NORM"]},
    ]


class Trainer:
    """State of one run: engine, optimizer, next iteration.

    Args:
        task: resolved.
        folder: of the checkpoints; created.
    """

    def __init__(
        self, engine: Engine, batches: TrainingBatches, task: TaskConfig, folder: Path, log: RunLog
    ) -> None:
        recipe = task.values()
        self.engine, self.batches, self.task, self.log = engine, batches, task, log
        self.schedule = Schedule.of(recipe)
        self.optimizer = torch.optim.SGD(
            parameter_groups(engine.model, recipe),
            lr=recipe["SOLVER.BASE_LR"],
            momentum=recipe["SOLVER.MOMENTUM"],
            nesterov=recipe["SOLVER.NESTEROV"],
        )
        self.iteration = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "last.pt"

    def train(self) -> None:
        """Run the remaining iterations; save every ``checkpoint_every`` and at the end."""
        self.engine.model.train()
        last = self.schedule.num_iterations
        with self.log.progress(last, "train", initial=self.iteration) as bar:
            for batch in self.batches(self.iteration, last):
                terms = self.step(batch)
                bar.advance(1, loss=sum(terms.values()))
                if self.iteration % self.task.checkpoint_every == 0 or self.iteration == last:
                    self.save()

    def step(self, batch: list[Any]) -> dict[str, float]:
        """One gradient step; returns the loss terms."""
        lr = self.schedule.lr_at(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses = self._losses(self.iteration, batch)
        terms = {name: value.item() for name, value in losses.items()}
        self._require_finite(terms)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self._is_logged():
            self.log.scalars(self.iteration, total=sum(terms.values()), lr=lr, **terms)
        self.iteration += 1
        return terms

    def _is_logged(self) -> bool:
        last = self.schedule.num_iterations
        interval = max(1, min(MAX_LOG_INTERVAL, last // 20))
        return self.iteration % interval == 0 or self.iteration + 1 == last

    def _losses(self, iteration: int, batch: list[Any]) -> dict[str, Tensor]:
        # both engines sample anchors and regions from the global generator
        with seeded(self.task.seed, "sampling", iteration):
            return self.engine.losses(batch)

    def _require_finite(self, terms: Mapping[str, float]) -> None:
        if not all(math.isfinite(value) for value in terms.values()):
            raise TrainingError(
                f"task {self.task.task}: the loss is not finite at iteration {self.iteration} "
                f"({dict(terms)}); training diverged. "
                "Lower set.SOLVER.BASE_LR or lengthen set.SOLVER.WARMUP_ITERS"
            )

    def calibrate_norms(self, num_batches: int) -> None:
        """Recompute batch-norm statistics on the batches that would come next."""
        self.engine.model.train()
        first = self.schedule.num_iterations
        with self.log.progress(num_batches, "batch-norm statistics") as bar:

            def forward(iteration: int, batch: list[Any]) -> None:
                self._losses(iteration, batch)
                bar.advance(1)

            batches = zip(count(first), self.batches(first, first + num_batches), strict=False)
            num_norms = precise_bn(self.engine.model, forward, batches)
        self.log.info(f"statistics of {num_norms} batch norms recomputed on {num_batches} batches")

    def save(self) -> None:
        """Write the state that ``resume`` reads, atomically."""
        state = {
            "model": self.engine.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
        }
        save_checkpoint(self.path, self.task, state)

    def resume(self) -> None:
        """Continue from the saved state if there is one."""
        if not self.path.exists():
            self.log.rewind(0)
            return
        state = load_checkpoint(self.path, self.task)
        self.engine.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["iteration"]
        self.log.rewind(self.iteration)
        self.log.info(f"continuing at iteration {self.iteration} of {self.schedule.num_iterations}")


def save_checkpoint(path: Path, task: TaskConfig, state: Mapping[str, Any]) -> None:
    """Write tensors and plain containers atomically, with the config they belong to."""
    config = json.loads(task.model_dump_json())
    write_torch(path, {"format": FORMAT, "version": VERSION, "config": config, **state})


def load_checkpoint(path: Path, task: TaskConfig) -> dict[str, Any]:
    """Read a checkpoint of this very task.

    Raises:
        TrainingError: the file is damaged, or belongs to another config.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(f"{path} cannot be read ({error}); delete it to start over") from error
    if state.get("format") != FORMAT or state.get("version") != VERSION:
        raise TrainingError(f"{path} is no checkpoint of a detector; delete it to start over")
    if state["config"]["recipe_values"] != json.loads(task.model_dump_json())["recipe_values"]:
        raise TrainingError(f"{path} was made with another recipe; delete its folder to start over")
    return state
