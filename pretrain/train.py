"""The pretraining loop (paper Algorithm 3). Start reading at ``Run.train``.

python -m pretrain configs/pretrain/cyborgs.toml --data DATA --out runs/my_run
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from pretrain import checkpoint
from pretrain.checkpoint import DivergedError, NotFiniteError
from pretrain.config import (
    FIXED_SOURCES,
    STORED,
    PretrainConfig,
)
from pretrain.data import Batch, make_loader, steps_per_epoch, to_device
from pretrain.masks.ground_truth import Annotations
from pretrain.masks.kmeans_faiss import require_faiss
from pretrain.masks.refresh import Bootstrap, refresh, weights_id
from pretrain.masks.sources import make_fixed_masks, require_source
from pretrain.masks.store import MaskStore
from pretrain.masks.stored import link, open_whole
from pretrain.memory import shared_batch
from pretrain.methods import METHODS
from pretrain.methods.base import StepOutput
from pretrain.optimizers import build_optimizer, set_lr
from pretrain.probe import OnlineProbe, is_recorded
from pretrain.schedule import (
    EpochPlan,
    lr_at,
    mask_epoch,
    needs_calibration,
    plan_epoch,
)
from pretrain.start import say_plan, starting_trunk
from sslbench import dist
from sslbench.batchnorm import synchronised
from sslbench.catalog import lookup
from sslbench.datasets import DataRoots, ImageList, images_id
from sslbench.interrupt import StopRequest
from sslbench.log import Progress, RunLog
from sslbench.meter import Meter
from sslbench.precision import resolved
from sslbench.resnet import resolve_layer

CALIBRATION_BATCHES = 100
LOSS, STOP = "loss", "stop"  # names among the values of a step


@dataclass(frozen=True)
class Place:
    """Where a run works; nothing here may change its numbers."""

    folder: Path
    device: torch.device
    num_workers: int = 0
    data: DataRoots | None = None  # where annotations lie


class Run:
    """One pretraining run in its folder: built from the config, continued from ``last.pt``.

    Args:
        cfg: what is trained.
        images: what it is trained on.
        place: where.
        log: the folder's log.
        init: checkpoint whose trunk the run starts from; none: random weights.
        probe: what watches the trunk between epochs.
        stored: the masks where their source is a store made before.
    """

    def __init__(
        self,
        cfg: PretrainConfig,
        images: ImageList,
        place: Place,
        log: RunLog,
        init: Path | None = None,
        probe: OnlineProbe | None = None,
        stored: Path | None = None,
    ) -> None:
        self.cfg, self.images, self.place, self.log = cfg, images, place, log
        self.probe = probe
        shared_batch(cfg).require_equal_parts()
        masks = cfg.method.mask_config
        if masks is not None:
            require_source(masks.source)
        is_stored = masks is not None and masks.source == STORED
        assert is_stored == (stored is not None), "a store comes with its source"
        if cfg.method.clusters_by_faiss:
            require_faiss()
        self.images_id = images_id(images)
        self.stored = None if stored is None else open_whole(stored, self.images_id)
        self.steps_per_epoch = steps_per_epoch(len(images), cfg.batch_size)
        self.total_steps = cfg.schedule.epochs * self.steps_per_epoch
        start = None if init is None else starting_trunk(init, cfg)
        self.method = lookup(METHODS, cfg.method.name, "method")(cfg, start)
        self.method.to(place.device, memory_format=torch.channels_last).train()
        self.method.precision = resolved(cfg.precision, place.device)
        synchronised(self.method, place.device)
        self.optimizer = build_optimizer(cfg.optimizer, self.method)
        self.step = 0  # steps done so far
        self.stop = StopRequest()
        if self.last_path.exists():
            self.step = checkpoint.restore(self.last_path, self.method, self.optimizer, cfg)
            log.info(f"continuing after step {self.step} of {self.total_steps}")
        dist.require_equal("the step to continue from", self.step)
        dist.require_equal("the weights", int(weights_id(self.method)[:15], 16))
        log.rewind(self.step)
        self.say_plan()

    def train(self) -> None:
        """Run all epochs that are left.

        Raises:
            KeyboardInterrupt: a signal asked to stop; everything up to this step is saved.
        """
        first_epoch = self.step // self.steps_per_epoch + 1
        with (
            self.stop.listening(),
            self.log.progress(self.total_steps, "pretrain", initial=self.step) as bar,
        ):
            at_an_end = self.step % self.steps_per_epoch == 0
            if self.probe and at_an_end and not is_recorded(self.log, self.step - 1):
                self.probe_after(first_epoch - 1)  # the run was killed after that epoch's save
            for epoch in range(first_epoch, self.cfg.schedule.epochs + 1):
                self.train_epoch(epoch, bar)
                self.probe_after(epoch)

    def train_epoch(self, epoch: int, bar: Progress) -> None:
        """Run the steps of ``epoch`` that are left, and save."""
        plan = plan_epoch(self.cfg.method, epoch)
        if dist.any_true(self.stop.asked):
            self.leave()  # the epoch before is saved
        masks = self.masks_for(epoch)
        asked = False
        meter = Meter(self.cfg.batch_size, self.place.device)
        for batch in meter.timed(self.batches(epoch, masks, len(plan.updates))):
            values = self.take_step(batch, plan, epoch)
            self.step += 1
            asked = values.pop(STOP) > 0
            self.record(epoch, values, meter, bar)
            if asked:
                break
            if self.is_save_due():
                self.save()
        is_whole = self.step % self.steps_per_epoch == 0
        self.save(kept=is_whole and epoch in self.cfg.schedule.keep_epochs)
        if asked:
            self.leave()

    def take_step(self, batch: Batch, plan: EpochPlan, epoch: int) -> dict[str, float]:
        """Do a step's updates one after the other; the loss is their sum."""
        set_lr(self.optimizer, self.lr())
        values: dict[str, float] = {}
        loss = 0.0
        for views, part in zip(batch.updates(len(plan.updates)), plan.updates, strict=True):
            values |= self.update(views, part, epoch)
            loss += values[LOSS]
            values |= self.method.update_target((self.step + 1) / self.total_steps)
        return values | {LOSS: loss}

    def leave(self) -> NoReturn:
        """Obey a signal once everything is saved."""
        state = f"saved after step {self.step}" if self.step else "before the first step"
        self.log.info(f"asked to stop: {state}")
        dist.barrier()  # a launcher kills all once one is gone: not before the file is there
        raise KeyboardInterrupt

    def probe_after(self, epoch: int) -> None:
        """Probe the trunk if that is due after ``epoch``, which is saved."""
        if self.probe is not None and self.probe.is_due(epoch):
            with self.stop.now():  # a resume finds that its row is missing
                backbone, workers = self.method.online_backbone, self.place.num_workers
                self.probe.record(backbone, epoch, self.step - 1, workers, self.log)

    def update(self, batch: Batch, plan: EpochPlan, epoch: int) -> dict[str, float]:
        """Take one optimizer step; return loss terms and monitors, averaged over the processes."""
        parts = batch.parts(self.cfg.accumulate)
        with shared_batch(self.cfg).out_of_memory_explained():
            self.optimizer.zero_grad(set_to_none=True)
            try:
                prepared = self.method.prepare(parts, plan)
            except NotFiniteError as error:
                self.give_up(batch, epoch, {str(error): math.nan})
            outputs = [self.differentiate(part, prepared, plan) for part in parts]
            terms = _combined([output.terms for output in outputs], scale=1.0)
            monitors = _combined([output.monitors for output in outputs], scale=1 / len(parts))
            asked = torch.tensor(float(self.stop.asked), device=self.place.device)
            values = dist.mean({LOSS: sum_of(terms), **terms, **monitors, STOP: asked})
            if not math.isfinite(values[LOSS]):
                self.give_up(batch, epoch, {name: values[name] for name in terms})
            dist.average_gradients([p.grad for p in self.method.parameters() if p.grad is not None])
            self.optimizer.step()
        return values

    def differentiate(self, part: Batch, prepared: Any, plan: EpochPlan) -> StepOutput:
        """Add a part's gradients; what it returns holds no graph."""
        output = self.method(part, prepared, plan)
        sum_of(output.terms).backward()
        return StepOutput({k: v.detach() for k, v in output.terms.items()}, output.monitors)

    def say_plan(self) -> None:
        """Say before the first step what the run will do, how long and in how much memory."""
        say_plan(
            self.log,
            self.cfg,
            self.method,
            num_images=len(self.images),
            steps_per_epoch=self.steps_per_epoch,
            device=self.place.device,
            is_new=self.step == 0,
            stored=None if self.stored is None else self.stored.folder,
        )

    def batches(self, epoch: int, masks: MaskStore | None, num_updates: int = 1) -> Iterator[Batch]:
        """The epoch's batches that are not done yet, on the device."""
        spec = self.method.view_spec
        loader = make_loader(
            self.images,
            masks,
            spec.times(num_updates),
            batch_size=self.cfg.batch_size,
            seed=self.cfg.seed,
            epoch=epoch,
            first_step=self.step % self.steps_per_epoch if epoch > 0 else 0,
            num_workers=self.place.num_workers,
        )
        for step, batch in enumerate(loader, start=self.step):
            yield to_device(batch, step, self.place.device, spec.saturated)

    def masks_for(self, epoch: int) -> MaskStore | None:
        """The masks that ``epoch`` uses, made now if this is the epoch that makes them."""
        made_in = mask_epoch(self.cfg.method, epoch)
        if made_in is None:
            return None
        folder = self.place.folder / "masks" / f"epoch_{made_in:04d}"
        if self.stored is not None:
            link(folder, self.stored)
            return self.stored
        masks = self.cfg.method.mask_config
        assert masks is not None, "a method that refreshes masks says which"
        fixed = masks.source in FIXED_SOURCES
        started = made_in < epoch or self.step % self.steps_per_epoch > 0
        if started and (folder.exists() or not fixed):
            return MaskStore(folder, self.images_id)
        if fixed:
            return self.fixed_masks(folder, masks.source)
        if needs_calibration(self.cfg.method, epoch):
            with self.stop.now():  # before the first step: nothing to save
                self.calibrate(masks.layers)
        precision = self.method.precision
        settings = Bootstrap.build(masks, seed=self.cfg.seed, epoch=epoch, precision=precision)
        backbone, workers = self.method.online_backbone, self.place.num_workers
        with self.stop.now():  # it keeps its own parts
            return refresh(
                backbone, self.images, self.images_id, folder, settings, self.log, workers
            )

    def fixed_masks(self, folder: Path, source: str) -> MaskStore:
        """Make the masks that no network changes, or finish them."""
        data = self.place.data
        with self.stop.now():  # it keeps its own parts
            return make_fixed_masks(
                source,
                self.images,
                self.images_id,
                folder,
                self.log,
                annotations=None if data is None else Annotations(self.cfg.images, data),
                num_workers=self.place.num_workers,
            )

    @torch.no_grad()
    def calibrate(self, names: tuple[str, ...]) -> None:
        """Let BatchNorm see views before an untrained network makes masks; nothing learns."""
        backbone, done = self.method.online_backbone, 0
        layers = [resolve_layer(name, backbone.depth) for name in names]
        with self.log.progress(CALIBRATION_BATCHES, "calibrate BatchNorm") as bar:
            while done < CALIBRATION_BATCHES:
                for batch in self.batches(0, None):
                    backbone.maps(batch.views[0].images_B3SS, layers)
                    bar.advance()
                    done += 1
                    if done == CALIBRATION_BATCHES:
                        break

    def lr(self) -> float:
        """Learning rate of the next step."""
        elapsed = self.step / self.steps_per_epoch
        return lr_at(self.cfg.optimizer, self.cfg.schedule, self.cfg.batch_size, elapsed)

    def record(self, epoch: int, values: dict[str, float], meter: Meter, bar: Progress) -> None:
        """Write the finished step to the log and move the bar."""
        self.log.scalars(
            self.step - 1,
            epoch=epoch,
            **values,
            lr=self.optimizer.param_groups[0]["lr"],
            **meter.rates(),
        )
        bar.advance(1, epoch=f"{epoch}/{self.cfg.schedule.epochs}", loss=values[LOSS])

    def give_up(self, batch: Batch, epoch: int, terms: dict[str, float]) -> NoReturn:
        """Stop before an update by a loss that is not finite; keep what led there."""
        dump = self.place.folder / "diverged.pt"
        indices = dist.all_gather(batch.indices_B)
        if dist.is_main():
            checkpoint.dump(dump, self.method, self.cfg, self.step, indices, terms)
        dist.barrier()
        shown = ", ".join(f"{name} = {value}" for name, value in terms.items())
        last = self.last_path
        kept = f"{last} keeps the last good state" if last.exists() else "nothing was saved"
        raise DivergedError(
            f"the loss is not finite in epoch {epoch}, step {self.step}: {shown}; {kept}; {dump} "
            "has the weights and the image indices of this step. Lower optimizer.lr or lengthen "
            "schedule.lr_warmup_epochs, and start a new run folder"
        )

    def is_save_due(self) -> bool:
        """Tell whether to save within the epoch; its end has a save of its own."""
        every = self.cfg.schedule.save_every_steps
        return every > 0 and self.step % every == 0 and self.step % self.steps_per_epoch != 0

    def save(self, *, kept: bool = False) -> None:
        """Write ``last.pt``, but first the epoch's own file if it stays: a resume skips epochs
        that ``last.pt`` has finished.
        """
        if not dist.is_main():
            return
        epoch = self.step // self.steps_per_epoch
        paths = [self.last_path]
        if kept:
            paths.insert(0, kept_path(self.place.folder, epoch))
        for path in paths:
            checkpoint.save(path, self.method, self.optimizer, self.cfg, epoch, self.step)

    @property
    def last_path(self) -> Path:
        """The checkpoint that a resume starts from."""
        return self.place.folder / "checkpoints" / "last.pt"


def kept_path(folder: Path, epoch: int) -> Path:
    """Checkpoint of an epoch that stays."""
    return folder / "checkpoints" / f"epoch_{epoch:04d}.pt"


def sum_of(terms: dict[str, Tensor]) -> Tensor:
    """The loss: the sum of its terms."""
    return torch.stack(list(terms.values())).sum()


def _combined(parts: list[dict[str, Tensor]], scale: float) -> dict[str, Tensor]:
    return {
        name: torch.stack([part[name].detach() for part in parts]).sum() * scale
        for name in parts[0]
    }
