"""The fine-tuning loop of the detectors: any engine, exact resume. Start at ``Trainer.train``.

A batch, its augmentation and the model's own sampling are functions of (seed, iteration), so a run
that was killed continues bit for bit on the CPU.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from sslbench import dist
from sslbench.batchnorm import synchronised
from sslbench.checkpoint import state_digest
from sslbench.interrupt import StopRequest
from sslbench.log import Progress, RunLog
from sslbench.meter import Meter
from sslbench.precision import Precision, autocast
from sslbench.rng import seeded
from transfer.accumulation import (
    average_gradients,
    mean_terms,
    place,
    require_shareable,
    shared_batch,
    split,
)
from transfer.checkpoint import TrainingError, load_checkpoint, save_checkpoint
from transfer.engines.base import Engine
from transfer.loader import TrainingBatches
from transfer.precise_bn import precise_bn
from transfer.precision import Scaler, keep_boxes_exact
from transfer.schedule import Schedule, parameter_groups
from transfer.task import TaskConfig

MAX_LOG_INTERVAL = 10  # iterations; short runs are logged more often


class Trainer:
    """State of one run: engine, optimizer, scale of float16, next iteration.

    Args:
        engine: its norms are exchanged for such that see the batches of all processes.
        task: resolved.
        folder: of the checkpoints; created.
        stop: whether a signal asked to stop.
    """

    def __init__(
        self,
        engine: Engine,
        batches: TrainingBatches,
        task: TaskConfig,
        folder: Path,
        log: RunLog,
        stop: StopRequest | None = None,
    ) -> None:
        recipe = task.values()
        self.engine, self.batches, self.task, self.log = engine, batches, task, log
        self.stop = StopRequest() if stop is None else stop
        self.device = next(engine.model.parameters()).device
        self.batch = shared_batch(recipe, task.accumulate)
        require_shareable(recipe, self.batch)
        synchronised(engine.model, self.device)
        if task.precision != "fp32":
            keep_boxes_exact(engine.model, engine.name)
        self.schedule = Schedule.of(recipe)
        self.optimizer = torch.optim.SGD(
            parameter_groups(engine.model, recipe),
            lr=recipe["SOLVER.BASE_LR"],
            momentum=recipe["SOLVER.MOMENTUM"],
            nesterov=recipe["SOLVER.NESTEROV"],
        )
        self.scaler = Scaler(task.precision, self.device)
        self.iteration = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "last.pt"

    def train(self, observe: Callable[[int], None] | None = None, every: int = 0) -> None:
        """Run the remaining iterations; save every ``checkpoint_every`` and at the end.

        Args:
            observe: called with the number of iterations done whenever ``every`` of them are done,
                except after the last; their state is saved by then. It must leave the training as
                it found it, and know what it observed before: a resume calls it again.
            every: iterations; 0: never.

        Raises:
            KeyboardInterrupt: a signal asked to stop; everything up to this iteration is saved.
        """
        self.engine.model.train()
        last = self.schedule.num_iterations
        meter = Meter(self.batch.size, self.device)
        with self.stop.listening(), self.log.progress(last, "train", initial=self.iteration) as bar:
            if observe and self._is_observed(every):
                observe(self.iteration)  # the run was killed after that save
            for batch in meter.timed(self.batches(self.iteration, last)):
                terms = self.step(batch)
                self.record(terms, meter, bar)
                asked = dist.any_true(self.stop.asked)
                is_observed = observe is not None and self._is_observed(every)
                if asked or is_observed or self._is_save_due():
                    self.save()
                if asked:
                    self._leave()
                if observe and is_observed:
                    observe(self.iteration)

    def step(self, batch: list[Any]) -> dict[str, float]:
        """One gradient step; returns the loss terms, averaged over the processes.

        Args:
            batch: this process's share.

        Raises:
            TrainingError: a term is not finite; nothing was updated.
        """
        self._set_lr()
        self.optimizer.zero_grad(set_to_none=True)
        with self.batch.out_of_memory_explained():
            terms = dist.mean(self._differentiate(batch))
            self._require_finite(terms)
            average_gradients(self.engine.model)
            self.scaler.step(self.optimizer)
        self.iteration += 1
        return terms

    def _differentiate(self, batch: list[Any]) -> dict[str, Tensor]:
        """Add the gradients of the batch, part by part; return its loss terms without graph."""
        found = []
        for index, part in enumerate(split(batch, self.task.accumulate)):
            losses = self._losses(self.iteration, index, part, self.task.precision)
            total = torch.stack(list(losses.values())).sum() / self.task.accumulate
            self.scaler.scaled(total).backward()  # type: ignore[no-untyped-call]
            found.append({name: value.detach() for name, value in losses.items()})
        return mean_terms(found)

    def _losses(
        self, iteration: int, index: int, part: Any, precision: Precision
    ) -> dict[str, Tensor]:
        # both engines sample anchors and regions from the global generator
        where = place(index, self.task.accumulate)
        with (
            seeded(self.task.seed, "sampling", iteration, *where),
            autocast(precision, self.device),
        ):
            return self.engine.losses(part)

    def _set_lr(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr_at(self.iteration)

    def _require_finite(self, terms: Mapping[str, float]) -> None:
        if not all(math.isfinite(value) for value in terms.values()):
            raise TrainingError(
                f"task {self.task.task}: the loss is not finite at iteration {self.iteration} "
                f"({dict(terms)}); training diverged. "
                "Lower set.SOLVER.BASE_LR or lengthen set.SOLVER.WARMUP_ITERS"
            )

    def record(self, terms: Mapping[str, float], meter: Meter, bar: Progress) -> None:
        """Log the finished iteration now and then, and move the bar."""
        total, rates = sum(terms.values()), meter.rates()
        done, last = self.iteration - 1, self.schedule.num_iterations
        if done % max(1, min(MAX_LOG_INTERVAL, last // 20)) == 0 or self.iteration == last:
            lr = self.optimizer.param_groups[0]["lr"]
            self.log.scalars(done, total=total, lr=lr, **terms, **self.scaler.values(), **rates)
        shown: dict[str, float | str] = {
            "img/s": rates["images_per_second"],
            "GiB": rates["peak_memory_gib"],
            "waiting": f"{rates['share_waiting_for_data']:.0%}",
        }
        bar.advance(1, loss=total, **shown)

    def _is_save_due(self) -> bool:
        is_last = self.iteration == self.schedule.num_iterations
        return is_last or self.iteration % self.task.checkpoint_every == 0

    def _is_observed(self, every: int) -> bool:
        is_between = 0 < self.iteration < self.schedule.num_iterations
        return every > 0 and is_between and self.iteration % every == 0

    def _leave(self) -> NoReturn:
        self.log.info(f"asked to stop: saved after iteration {self.iteration}")
        dist.barrier()  # a launcher kills all once one is gone: not before the file is there
        raise KeyboardInterrupt

    def calibrate_norms(self, num_batches: int) -> None:
        """Recompute batch-norm statistics, in float32, on the batches that would come next."""
        self.engine.model.train()
        with self.log.progress(num_batches, "batch-norm statistics") as bar:

            def forward(key: int, part: Any) -> None:
                iteration, index = divmod(key, self.task.accumulate)
                with self.batch.out_of_memory_explained():
                    self._losses(self.iteration + iteration, index, part, "fp32")
                bar.advance(1 if index == 0 else 0)

            num_norms = precise_bn(self.engine.model, forward, self._parts(num_batches))
        self.log.info(f"statistics of {num_norms} batch norms recomputed on {num_batches} batches")

    def _parts(self, num_batches: int) -> Iterator[tuple[int, Any]]:
        """The parts of the next batches, numbered on."""
        batches = self.batches(self.iteration, self.iteration + num_batches)
        return enumerate(part for batch in batches for part in split(batch, self.task.accumulate))

    def save(self) -> None:
        """Write the state that ``resume`` reads, atomically."""
        if not dist.is_main():
            return
        state = {
            "model": self.engine.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
        }
        if scale := self.scaler.state_dict():
            state["scaler"] = scale
        save_checkpoint(self.path, self.task, state)

    def resume(self) -> None:
        """Continue from the saved state if there is one.

        Raises:
            TrainingError: the file is damaged, or another task's.
            ValueError: the processes hold different weights.
        """
        if self.path.exists():
            state = load_checkpoint(self.path, self.task)
            self.engine.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state.get("scaler", {}))
            self.iteration = state["iteration"]
            last = self.schedule.num_iterations
            self.log.info(f"continuing at iteration {self.iteration} of {last}")
        dist.require_equal("the iteration to continue from", self.iteration)
        if dist.world_size() > 1:
            tensors = {k: v.cpu() for k, v in self.engine.model.state_dict().items()}
            dist.require_equal("the weights", int(state_digest(tensors)[:15], 16))
        self.log.rewind(self.iteration)
