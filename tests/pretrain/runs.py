"""Runs of a few steps, whole or cut short."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pretrain.train import Place, Run
from sslbench.files import sweep_scratch
from sslbench.log import RunLog


def train(cfg, image_list, folder: Path) -> dict:
    """Train in ``folder``, from wherever it stands; return the last checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep_scratch(folder)  # as every stage does when it starts
    with RunLog(folder) as log:
        Run(cfg, image_list, Place(folder, torch.device("cpu")), log).train()
    return last_checkpoint(folder)


def train_and_stop(cfg, image_list, folder: Path, steps: int) -> None:
    """Train in ``folder`` and die after ``steps`` steps, as by a kill."""
    with dying_after(steps):
        train(cfg, image_list, folder)


@contextlib.contextmanager
def dying_after(steps: int) -> Iterator[None]:
    """A training in the block dies after so many steps."""
    original, done = Run.record, []

    def stopping(self, *arguments):
        original(self, *arguments)
        done.append(1)
        if len(done) == steps:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "record", stopping)
        with pytest.raises(KeyboardInterrupt):
            yield


def last_checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoints/last.pt", weights_only=True)
