"""The control of bootstrapped masks: those of the same network before it has learned anything.

Random weights of the run's seed, also where it began from a checkpoint; BatchNorm is calibrated on
its views, as before a refresh that follows no warm-up; the same layers, K range and seed. What the
masks gain over these was learned.
"""

from pathlib import Path

import torch

from pretrain.checkpoint import FORMAT
from pretrain.config import FIXED_SOURCES, PretrainConfig
from pretrain.masks.store import MaskStore
from pretrain.train import Place, Run
from sslbench.checkpoint import CheckpointError
from sslbench.config import build
from sslbench.datasets import ImageList
from sslbench.log import RunLog


class _UntrainedRun(Run):
    """A run that stops before its first step."""

    def say_plan(self) -> None:
        """Nothing is going to be trained."""


def untrained_masks(
    checkpoint: Path,
    images: ImageList,
    folder: Path,
    log: RunLog,
    device: str = "cpu",
    num_workers: int = 0,
) -> MaskStore:
    """Make the masks of the network that a pretraining began with, random weights.

    Args:
        checkpoint: of the pretraining; its config says all. Where its masks came from no network,
            k-means clusters the features here.
        images: whose masks.
        folder: where they are made, or continued.

    Raises:
        CheckpointError: the file is of another format, and so has no config.
    """
    place = Place(folder, torch.device(device), num_workers)
    masks = _UntrainedRun(_untrained(checkpoint), images, place, log).masks_for(1)
    assert masks is not None, "the method has masks"
    return masks


def _untrained(checkpoint: Path) -> PretrainConfig:
    """Config of the run, whose first masks then come before any warm-up, from random weights."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise CheckpointError(
            f"{checkpoint} is no {FORMAT} checkpoint: its config, which the masks of the "
            "untrained network are made by, is not known"
        )
    config = saved["config"]
    masks = config["method"]["masks"]
    if masks["source"] in FIXED_SOURCES:
        masks |= {"source": "kmeans", "store": ""}
    config["method"] |= {"warmup_epochs": 0, "refresh_masks_every": 0}
    return build(PretrainConfig, config | {"init": ""}, str(checkpoint))
