"""Checkpoint files with trunks that look trained: BatchNorm statistics of their own."""

import functools
import io
from pathlib import Path

import torch
from torch import Tensor

from sslbench.checkpoint import Backbone, load_backbone
from sslbench.resnet import ResNet

# What a file may say of pixels, and Detectron2 would swallow without a word.
WRONG_PIXELS = (
    {"format": "BGR"},
    {"pixel_mean": [103.530, 116.280, 123.675]},
    {"pixel_std": [1.0, 1.0, 1.0]},
    {"pixel_std": [57.375, 57.120, 58.395]},
)


def write_checkpoint(folder: Path, depth: int = 50, width: float = 0.125) -> Path:
    """Write a torchvision-style file whose statistics come from a batch of noise."""
    path = folder / f"r{depth}.pth"
    path.write_bytes(_checkpoint(depth, width))
    return path


@functools.lru_cache(maxsize=4)
def _checkpoint(depth: int, width: float) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": trained_state(3, depth, width)}, file)
    return file.getvalue()


def trained_state(seed: int, depth: int = 50, width: float = 0.125) -> dict[str, Tensor]:
    """A trunk with statistics and norms of its own, and with counters."""
    torch.manual_seed(seed)
    network = ResNet(depth, width)
    for name, value in network.named_parameters():
        if "bn" in name or "downsample.1" in name:
            value.data += 0.2 * torch.randn_like(value)
    network.train()
    for _ in range(3):
        network(torch.randn(4, 3, 96, 96))
    return dict(network.state_dict())


def make_backbone(folder: Path, depth: int = 50, width: float = 0.125) -> Backbone:
    return load_backbone(write_checkpoint(folder, depth, width))
