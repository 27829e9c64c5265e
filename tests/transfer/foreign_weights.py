"""Weights as the converters of other code bases write them, by their documented containers."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import trained_state
from torch import Tensor

RULES = (
    (r"^(conv1|bn1|fc)", r"stem.\1"),
    (r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}"),
    (r"bn(\d)", r"conv\1.norm"),
    (r"downsample\.0", "shortcut"),
    (r"downsample\.1", "shortcut.norm"),
)


def bare(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Names without the place in a detector, which all four converters write; counters stay."""
    found = {}
    for name, value in state.items():
        for pattern, replacement in RULES:
            name = re.sub(pattern, replacement, name)
        found[name] = value.numpy()
    return found


def moco_checkpoint(folder: Path) -> Path:
    """Both branches, a projector inside the trunk's prefix, the queue."""
    state: dict[str, Tensor] = {"module.queue": torch.randn(8, 4)}
    for seed, encoder in enumerate("qk"):
        prefix = f"module.encoder_{encoder}."
        state |= {prefix + name: value for name, value in trained_state(seed).items()}
        state |= {f"{prefix}fc.{i}.weight": torch.randn(4, 4) for i in (0, 2)}
    path = folder / "moco.pth"
    torch.save({"epoch": 1, "arch": "resnet50", "state_dict": state}, path)
    return path


def encoder(checkpoint: Path, name: str) -> dict[str, Tensor]:
    prefix = f"module.encoder_{name}."
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def as_moco(path: Path, state: Mapping[str, Tensor], **more: Any) -> Path:
    """A plain pickle of arrays; the projector leaks as ``stem.fc.0.weight``."""
    content = {"model": bare(state), "__author__": "MOCO", "matching_heuristics": True} | more
    path.write_bytes(pickle.dumps({k: v for k, v in content.items() if v is not None}))
    return path


def as_openselfsup(path: Path, state: Mapping[str, Tensor]) -> Path:
    """As MoCo's, from an extracted backbone without a head."""
    trunk = {name: value for name, value in state.items() if not name.startswith("fc")}
    return as_moco(path, trunk, __author__="OpenSelfSup")


def as_torchvision(path: Path, state: Mapping[str, Tensor]) -> Path:
    """As MoCo's, with the classifier."""
    trunk = {name: value for name, value in state.items() if not name.startswith("fc")}
    fc = {"fc.weight": torch.randn(5, 8), "fc.bias": torch.randn(5)}
    return as_moco(path, trunk | fc, __author__="torchvision")


def as_vissl(path: Path, state: Mapping[str, Tensor]) -> Path:
    """A torch file, without counters and head."""
    kept = {k: v for k, v in state.items() if not k.endswith("tracked") and not k.startswith("fc")}
    model = {name: torch.from_numpy(value) for name, value in bare(kept).items()}
    torch.save({"model": model, "matching_heuristics": True}, path)
    return path


WRITERS = {
    "moco.pkl": as_moco,
    "openselfsup.pkl": as_openselfsup,
    "torchvision.pkl": as_torchvision,
    "vissl.torch": as_vissl,
}
