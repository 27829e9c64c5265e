"""An engine of a few numbers, for tests of the loop around it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from detectors import twin_task
from torch import Tensor, nn

from sslbench.interrupt import StopRequest
from sslbench.log import RunLog
from sslbench.rng import torch_generator
from transfer.trainer import Trainer


class TinyEngine:
    """A convolution, a norm and a line fitted to points; draws noise as detectors draw regions."""

    name = "torchvision"
    fresh: tuple[str, ...] = ()

    def __init__(self, norm: bool = True) -> None:
        torch.manual_seed(1)
        middle = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.model = nn.Sequential(
            nn.Conv2d(3, 4, 3), middle, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.model.append(nn.Linear(4, 1))

    def losses(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Two terms of different size."""
        images = torch.stack(list(batch))
        found = self.model(images + 0.1 * torch.rand(()))[:, 0].float()
        wanted = images.mean(dim=(1, 2, 3))
        return {"loss_cls": (found - wanted).square().mean(), "loss_mask": 0.1 * found.abs().mean()}


def tiny_batches(start: int, stop: int) -> Iterator[list[Tensor]]:
    """Batches of four pictures by iteration."""
    for iteration in range(start, stop):
        yield list(torch.randn(4, 3, 8, 8, generator=torch_generator(0, "tiny", iteration)))


def tiny_trainer(
    folder: Path, *overrides: str, engine: TinyEngine | None = None, stop: StopRequest | None = None
) -> Trainer:
    """A trainer of eight iterations on batches of four."""
    folder.mkdir(parents=True, exist_ok=True)
    task = twin_task("c4", overrides=["set.SOLVER.IMS_PER_BATCH=4", *overrides])
    log = RunLog(folder)
    return Trainer(engine or TinyEngine(), tiny_batches, task, folder, log, stop)  # type: ignore[arg-type]


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of the model's tensors."""
    return {name: value.clone() for name, value in trainer.engine.model.state_dict().items()}
