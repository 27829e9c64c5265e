"""A trunk's tensors are checked one by one against the ResNet that their shapes describe."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sslbench.checkpoint.errors import CheckpointError, listed
from sslbench.resnet import BLOCKS, LAYERS, STEM_CHANNELS, ResNet

COUNTER = "num_batches_tracked"


def extract(inside: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], int, float]:
    """Return the canonical state, the depth and the width of one trunk.

    Args:
        inside: tensors under the trunk's own names.
        where: file and prefix, for messages.
    """
    given = {name: value for name, value in inside.items() if not name.endswith(COUNTER)}
    depth, width = _architecture(given, where)
    with torch.device("meta"):
        expected = {k: v for k, v in ResNet(depth, width).state_dict().items() if COUNTER not in k}
    _require_same_keys(given, expected, f"{where}: as a ResNet-{depth} of width {width:g}")
    _require_sane_values(given, where)
    return {name: given[name].detach().contiguous() for name in expected}, depth, width


def extract_counters(
    inside: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what BatchNorm counted: no part of the canonical state, for it changes no output."""
    names = (f"{n.removesuffix('running_mean')}{COUNTER}" for n in state if "running_mean" in n)
    return {name: inside[name] for name in names if name in inside and inside[name].ndim == 0}


def _architecture(given: Mapping[str, Tensor], where: str) -> tuple[int, float]:
    counts = tuple(_num_blocks(given, layer) for layer in LAYERS)
    bottleneck = any(re.search(r"\.conv3\.", name) for name in given)
    for depth, blocks in BLOCKS.items():
        if blocks == counts and bottleneck == (depth >= 50):
            return depth, given["conv1.weight"].shape[0] / STEM_CHANNELS
    raise CheckpointError(
        f"{where}: stages of {counts} {'bottleneck' if bottleneck else 'basic'} blocks are none of "
        f"ResNet-{'/'.join(map(str, BLOCKS))}; blocks are missing, or it is another network"
    )


def _num_blocks(given: Mapping[str, Tensor], layer: str) -> int:
    indices = {m[1] for name in given if (m := re.match(rf"{layer}\.(\d+)\.", name))}
    return len(indices)


def _require_same_keys(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str
) -> None:
    shapes = [
        f"{name} is {tuple(given[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in given and given[name].shape != value.shape
    ]
    problems = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "mis-shaped": shapes,
    }
    if any(problems.values()):
        lists = [f"{len(keys)} {kind}: {listed(keys)}" for kind, keys in problems.items() if keys]
        raise CheckpointError(
            f"{where} its tensors do not fit; {'; '.join(lists)}. It was saved incompletely, or it "
            "is a variant (wide, ResNeXt, SE, other stem or shortcut) that is not supported"
        )


def _require_sane_values(given: Mapping[str, Tensor], where: str) -> None:
    for name, value in given.items():
        if value.dtype != torch.float32:
            raise CheckpointError(
                f"{where}: {name} is {value.dtype}, not torch.float32. Take the full-precision "
                "checkpoint, or save state_dict() after .float() if there is no other"
            )
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"{where}: {name} holds NaN or infinite values: the training diverged. "
                "Take an earlier checkpoint"
            )
        if name.endswith("running_var") and not (value > 0).all():
            raise CheckpointError(
                f"{where}: {name} has a variance that is not positive (smallest "
                f"{value.min().item():g}); BatchNorm would divide by almost nothing. "
                "Take a checkpoint whose statistics were collected"
            )
