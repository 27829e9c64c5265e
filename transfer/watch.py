"""Evaluations while a detector trains: its curve over the iterations. The training is left alone.

As Detectron2's evaluation hooks do, batch-norm statistics are recomputed first where the protocol
says so; unlike there, the training goes on with its own.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslbench import dist
from sslbench.datasets import Dataset
from sslbench.files import read_json, write_json
from sslbench.rng import seeded
from transfer.prediction import parts_of, predict
from transfer.trainer import Trainer

HISTORY = "history.json"


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Give a model its buffers and its mode back after the block; parameters are not to change."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
        for module, training in modes.items():
            module.training = training


@dataclass(frozen=True)
class Watch:
    """Evaluates a trainer's detector in between; each process calls it.

    Args:
        folder: the run folder.
        score: predictions file to metrics, called in one process.
        num_workers: loader processes.
    """

    trainer: Trainer
    test: Dataset
    folder: Path
    score: Callable[[Path], Mapping[str, float | None]]
    num_workers: int = 0

    def __call__(self, iteration: int) -> None:
        """Evaluate after ``iteration`` iterations unless that is on record."""
        if str(iteration) in self._history():
            return
        trainer, path = self.trainer, self.folder / f"predictions_{iteration}.json"
        model, log, recipe = trainer.engine.model, trainer.log, trainer.task.values()
        with (
            trainer.stop.now(),  # all is saved
            seeded(trainer.task.seed, "watch", iteration),
            undisturbed(model),
            dist.patient_barrier() as wait,
        ):
            if recipe["TEST.PRECISE_BN.ENABLED"]:
                trainer.calibrate_norms(recipe["TEST.PRECISE_BN.NUM_ITER"])
            predict(trainer.engine, self.test, path, log, wait, self.num_workers)
            if dist.is_main():
                self._record(iteration, path)
            wait()

    def rewind(self) -> None:
        """Forget what lies after the trainer's iteration, and predictions that were cut short."""
        if dist.is_main():
            history = self._history()
            kept = {k: v for k, v in history.items() if int(k) <= self.trainer.iteration}
            if kept != history:
                write_json(self.folder / HISTORY, kept)
            for left in self.folder.glob("predictions_[0-9]*"):
                parts_of(left).discard()
                left.unlink(missing_ok=True)
        dist.barrier()

    def _record(self, iteration: int, path: Path) -> None:
        metrics = {name: value for name, value in self.score(path).items() if value is not None}
        path.unlink()
        history = self._history()
        evaluated = {f"eval_{name}": value for name, value in metrics.items()}
        self.trainer.log.scalars(iteration - 1, **evaluated)
        write_json(self.folder / HISTORY, {**history, str(iteration): metrics})
        shown = "  ".join(f"{name} {value:.2f}" for name, value in list(metrics.items())[:3])
        self.trainer.log.info(f"after {iteration} iterations: {shown}")

    def _history(self) -> dict[str, Any]:
        path = self.folder / HISTORY
        found: dict[str, Any] = read_json(path) if path.exists() else {}
        return found
