"""The pretraining loop (paper Algorithm 3). Start reading at ``Run.train``.

python -m pretrain configs/pretrain/cyborgs.toml --data DATA --out runs/my_run
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain import checkpoint
from pretrain.checkpoint import DivergedError
from pretrain.config import (
    FIXED_SOURCES,
    AdamWConfig,
    LARSConfig,
    OptimizerConfig,
    PretrainConfig,
    SGDConfig,
)
from pretrain.data import Batch, make_loader, steps_per_epoch, to_device
from pretrain.lars import LARS
from pretrain.masks.refresh import Bootstrap, refresh
from pretrain.masks.sources import make_fixed_masks
from pretrain.masks.store import MaskStore
from pretrain.methods import METHODS
from pretrain.methods.base import StepOutput
from pretrain.schedule import lr_at, mask_epoch, needs_calibration, plan_epoch, target_rate_at
from sslbench import dist
from sslbench.catalog import lookup
from sslbench.datasets import ImageList, images_id
from sslbench.log import Progress, RunLog
from sslbench.resnet import resolve_layer

CALIBRATION_BATCHES = 100


@dataclass(frozen=True)
class Place:
    """Where a run works; nothing here may change its numbers."""

    folder: Path
    device: torch.device
    num_workers: int = 0


class Run:
    """One pretraining run in its folder: built from the config, continued from ``last.pt``.

    Args:
        cfg: what is trained.
        images: what it is trained on.
        place: where.
        log: the folder's log.
    """

    def __init__(self, cfg: PretrainConfig, images: ImageList, place: Place, log: RunLog) -> None:
        self.cfg, self.images, self.place, self.log = cfg, images, place, log
        self.images_id = images_id(images)
        self.steps_per_epoch = steps_per_epoch(len(images), cfg.batch_size)
        self.total_steps = cfg.schedule.epochs * self.steps_per_epoch
        self.method = lookup(METHODS, cfg.method.name, "method")(cfg)
        self.method.to(place.device, memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(cfg.optimizer, self.method)
        self.step = 0  # steps done so far
        if self.last_path.exists():
            self.step = checkpoint.restore(self.last_path, self.method, self.optimizer, cfg)
            log.info(f"continuing after step {self.step} of {self.total_steps}")
        log.rewind(self.step)
        log.info(self.outline())

    def train(self) -> None:
        """Run all epochs that are left."""
        cfg, first_epoch = self.cfg, self.step // self.steps_per_epoch + 1
        with self.log.progress(self.total_steps, "pretrain", initial=self.step) as bar:
            for epoch in range(first_epoch, cfg.schedule.epochs + 1):
                plan = plan_epoch(cfg.method, epoch)
                masks = self.masks_for(epoch)
                meter = Meter(cfg.batch_size)
                for batch in meter.timed(self.batches(epoch, masks)):
                    set_lr(self.optimizer, self.lr())
                    output = self.method(batch, plan)
                    total = sum(
                        output.terms.values(), start=torch.zeros((), device=self.place.device)
                    )
                    require_finite(total, output.terms, epoch, self.step, self.last_path)
                    self.optimizer.zero_grad(set_to_none=True)
                    total.backward()
                    self.optimizer.step()
                    self.step += 1
                    self.method.update_target(self.step / self.total_steps)
                    self.record(epoch, total, output, meter, bar)
                    if self.is_save_due():
                        self.save()
                self.save(kept=epoch in cfg.schedule.keep_epochs)

    def outline(self) -> str:
        """Say in one line what the run will do."""
        cfg, epochs = self.cfg, range(1, self.cfg.schedule.epochs + 1)
        plans = [plan_epoch(cfg.method, epoch) for epoch in epochs]
        refreshed = [str(e) for e, plan in zip(epochs, plans, strict=True) if plan.refresh_masks]
        warmup = sum(not plan.contrast for plan in plans)
        trained = sum(p.numel() for p in self.method.parameters() if p.requires_grad)
        return (
            f"{len(self.images)} images, {len(epochs)} epochs of {self.steps_per_epoch} steps of "
            f"{cfg.batch_size}; {warmup} epochs of warm-up; masks from {cfg.method.masks.source}, "
            f"made before epoch {', '.join(refreshed)}; {trained / 1e6:.1f} M weights; "
            f"{self.place.device}"
        )

    def batches(self, epoch: int, masks: MaskStore | None) -> Iterator[Batch]:
        """The epoch's batches that are not done yet, on the device."""
        loader = make_loader(
            self.images,
            masks,
            self.method.view_spec,
            batch_size=self.cfg.batch_size,
            seed=self.cfg.seed,
            epoch=epoch,
            first_step=self.step % self.steps_per_epoch if epoch > 0 else 0,
            num_workers=self.place.num_workers,
        )
        for step, batch in enumerate(loader, start=self.step):
            yield to_device(batch, step, self.place.device)

    def masks_for(self, epoch: int) -> MaskStore | None:
        """The masks that ``epoch`` uses, made now if this is the epoch that makes them."""
        made_in = mask_epoch(self.cfg.method, epoch)
        if made_in is None:
            return None
        folder = self.place.folder / "masks" / f"epoch_{made_in:04d}"
        masks = self.cfg.method.masks
        if masks.source in FIXED_SOURCES:
            return make_fixed_masks(masks.source, self.images, self.images_id, folder, self.log)
        if made_in < epoch or self.step % self.steps_per_epoch:
            return MaskStore(folder, self.images_id)
        if needs_calibration(self.cfg.method, epoch):
            self.calibrate()
        settings = Bootstrap(
            layers=masks.layers,
            min_clusters=masks.min_clusters,
            max_clusters=masks.max_clusters,
            images_per_clustering=masks.images_per_clustering,
            iterations=masks.iterations,
            seed=self.cfg.seed,
            epoch=epoch,
        )
        backbone = self.method.online_backbone
        return refresh(backbone, self.images, self.images_id, folder, settings, self.log)

    @torch.no_grad()
    def calibrate(self) -> None:
        """Let BatchNorm see views before an untrained network makes masks; nothing learns."""
        backbone, done = self.method.online_backbone, 0
        layers = [resolve_layer(name, backbone.depth) for name in self.cfg.method.masks.layers]
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

    def record(
        self, epoch: int, total: Tensor, output: StepOutput, meter: "Meter", bar: Progress
    ) -> None:
        """Write the finished step to the log and move the bar."""
        values = {name: float(value.detach()) for name, value in output.terms.items()}
        values |= {name: float(value) for name, value in output.monitors.items()}
        loss = float(total.detach())
        self.log.scalars(
            self.step - 1,
            epoch=epoch,
            loss=loss,
            **values,
            lr=self.optimizer.param_groups[0]["lr"],
            target_rate=target_rate_at(self.cfg.method, self.step / self.total_steps),
            **meter.rates(),
        )
        bar.advance(1, epoch=f"{epoch}/{self.cfg.schedule.epochs}", loss=loss)

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


class Meter:
    """Measures images per second and the time spent waiting for data."""

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self._step_began = time.monotonic()
        self._waited = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and clock how long each took to arrive."""
        while True:
            self._step_began = time.monotonic()
            batch = next(batches, None)
            self._waited = time.monotonic() - self._step_began
            if batch is None:
                return
            yield batch

    def rates(self) -> dict[str, float]:
        """Rates of the step that is under way."""
        seconds = time.monotonic() - self._step_began
        return {
            "images_per_second": self.images_per_step / max(seconds, 1e-9),
            "seconds_waiting_for_data": self._waited,
        }


def build_optimizer(cfg: OptimizerConfig, module: nn.Module) -> Optimizer:
    """Make the optimizer; biases and normalisation weights take no weight decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    match cfg:
        case LARSConfig():
            return LARS(groups, cfg.lr, momentum=cfg.momentum)
        case AdamWConfig():
            return torch.optim.AdamW(groups, cfg.lr, fused=True)
        case SGDConfig():
            return torch.optim.SGD(groups, cfg.lr, momentum=cfg.momentum, fused=True)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def require_finite(
    total: Tensor, terms: dict[str, Tensor], epoch: int, step: int, last_path: Path
) -> None:
    """Stop before a loss that is not finite touches the weights."""
    if not bool(torch.isfinite(total)):
        shown = ", ".join(f"{name} = {float(value.detach())}" for name, value in terms.items())
        kept = (
            f"{last_path} keeps the last good state" if last_path.exists() else "nothing was saved"
        )
        raise DivergedError(
            f"the loss is not finite in epoch {epoch}, step {step}: {shown}; {kept}. "
            "Lower optimizer.lr or lengthen schedule.lr_warmup_epochs, and start a new run folder"
        )
