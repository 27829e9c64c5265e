"""Detectron2's own training loop on an engine's model and given batches, to compare ours with."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sslbench.log import only_errors
from sslbench.rng import seeded
from transfer.engines.detectron2 import Detectron2Engine, build_config
from transfer.task import TaskConfig


class DefaultLoop:
    """``DefaultTrainer`` with its optimizer, schedule and step, stepped by hand.

    Args:
        task: resolved.
        engine: whose model is trained.
        batches: what the loop reads, one per iteration.
        num_classes: of the data.
        folder: for what its hooks write.
        with_hooks: whether its timers, writers and checkpointer run beside the schedule.
    """

    def __init__(
        self,
        task: TaskConfig,
        engine: Detectron2Engine,
        batches: Iterable[Sequence[Any]],
        num_classes: int,
        folder: Path,
        *,
        with_hooks: bool = False,
    ) -> None:
        from detectron2.engine import DefaultTrainer, hooks

        class Loop(DefaultTrainer):  # type: ignore[misc]
            @classmethod
            def build_model(cls, cfg: Any) -> Any:
                return engine.model

            @classmethod
            def build_train_loader(cls, cfg: Any) -> Any:
                return batches

            def build_hooks(self) -> list[Any]:
                return super().build_hooks() if with_hooks else [hooks.LRScheduler()]

        cfg = build_config(task, num_classes, "cpu").clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = str(folder)
        cfg.DATASETS.TEST = ()
        cfg.TEST.PRECISE_BN.ENABLED = False  # after training, and not part of a step
        cfg.freeze()
        self.seed = task.seed
        with only_errors("detectron2"):
            self.trainer = Loop(cfg)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Let steps be made within the block."""
        from detectron2.utils.events import EventStorage

        trainer = self.trainer
        with only_errors("detectron2"), EventStorage(0) as trainer.storage:
            trainer.iter, trainer.start_iter = 0, 0
            trainer.before_train()
            yield

    def step(self) -> dict[str, float]:
        """One iteration, hooks included; returns its loss terms.

        Its model draws what ours does in the same iteration.
        """
        trainer = self.trainer
        trainer.before_step()
        with seeded(self.seed, "sampling", trainer.iter):
            trainer.run_step()
        trainer.after_step()
        latest = trainer.storage.latest()
        trainer.iter += 1
        return {name: value for name, (value, _) in latest.items() if name.startswith("loss_")}
