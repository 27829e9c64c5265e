"""Checkpoint files with trunks that look trained: BatchNorm statistics of their own."""

import functools
import io
from pathlib import Path

import torch

from sslbench.checkpoint import Backbone, load_backbone
from sslbench.resnet import ResNet


def write_checkpoint(folder: Path, depth: int = 50, width: float = 0.125) -> Path:
    """Write a torchvision-style file whose statistics come from a batch of noise."""
    path = folder / f"r{depth}.pth"
    path.write_bytes(_checkpoint(depth, width))
    return path


@functools.lru_cache(maxsize=4)
def _checkpoint(depth: int, width: float) -> bytes:
    torch.manual_seed(3)
    network = ResNet(depth, width)
    for name, value in network.named_parameters():
        if "bn" in name or "downsample.1" in name:
            value.data += 0.2 * torch.randn_like(value)
    network.train()
    for _ in range(3):
        network(torch.randn(4, 3, 96, 96))
    file = io.BytesIO()
    torch.save({"state_dict": network.state_dict()}, file)
    return file.getvalue()


def make_backbone(folder: Path, depth: int = 50, width: float = 0.125) -> Backbone:
    return load_backbone(write_checkpoint(folder, depth, width))
