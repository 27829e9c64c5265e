"""A trunk's tensors are checked one by one against the ResNet that their shapes describe."""

import re
from collections.abc import Collection, Mapping
from functools import cache

import torch
from torch import Tensor

from sslbench.checkpoint.errors import CheckpointError, listed
from sslbench.resnet import BLOCKS, LAYERS, STEM_CHANNELS, ResNet

COUNTER = "num_batches_tracked"


KINDS = ("missing", "unexpected", "mis-shaped")


def extract(inside: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], int, float]:
    """Return the canonical state, the depth and the width of one trunk.

    Args:
        inside: tensors under canonical names, and whatever else stands among them.
        where: file and prefix, for messages.

    Raises:
        CheckpointError: a tensor is missing, unexpected, mis-shaped, no float32 or not finite.
    """
    given = _without_counters(inside)
    depth, width = _architecture(given, where)
    problems = differences(given, KINDS)
    if problems:
        raise CheckpointError(
            f"{where}: as a ResNet-{depth} of width {width:g} its tensors do not fit; "
            f"{'; '.join(problems)}. It was saved incompletely, or it is a variant (wide, ResNeXt, "
            "SE, other stem, shortcut or normalisation) that is not supported"
        )
    _require_sane_values(given, where)
    return {name: _own(given[name]) for name in _shapes(depth, width)}, depth, width


def _own(value: Tensor) -> Tensor:
    """Copy a value, which may be a mapped file that changes later."""
    return value.detach().clone(memory_format=torch.contiguous_format)


def differences(inside: Mapping[str, Tensor], kinds: Collection[str]) -> list[str]:
    """List what is wrong with a trunk's tensors, a line for each of ``kinds`` that there is."""
    given = _without_counters(inside)
    try:
        expected = _shapes(*_architecture(given, "the trunk"))
    except CheckpointError as error:
        return [str(error)]
    problems = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "mis-shaped": [
            f"{name} is {tuple(given[name].shape)}, not {shape}"
            for name, shape in expected.items()
            if name in given and tuple(given[name].shape) != shape
        ],
    }
    return [f"{len(problems[k])} {k}: {listed(problems[k])}" for k in kinds if problems[k]]


def _without_counters(inside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in inside.items() if not name.endswith(COUNTER)}


@cache
def _shapes(depth: int, width: float) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = ResNet(depth, width).state_dict()
    return {k: tuple(v.shape) for k, v in state.items() if not k.endswith(COUNTER)}


def extract_counters(
    inside: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what BatchNorm counted: no part of the canonical state, for it changes no output."""
    names = (f"{n.removesuffix('running_mean')}{COUNTER}" for n in state if "running_mean" in n)
    return {n: _own(inside[n]) for n in names if n in inside and inside[n].ndim == 0}


def _architecture(given: Mapping[str, Tensor], where: str) -> tuple[int, float]:
    counts = tuple(_num_blocks(given, layer) for layer in LAYERS)
    bottleneck = any(re.search(r"\.conv3\.", name) for name in given)
    for depth, blocks in BLOCKS.items():
        if blocks == counts and bottleneck == (depth >= 50):
            return depth, _stem_channels(given, where) / STEM_CHANNELS
    raise CheckpointError(
        f"{where}: stages of {counts} {'bottleneck' if bottleneck else 'basic'} blocks are none of "
        f"ResNet-{'/'.join(map(str, BLOCKS))}; blocks are missing, or it is another network"
    )


def _stem_channels(given: Mapping[str, Tensor], where: str) -> int:
    for name in ("conv1.weight", "bn1.weight", "bn1.bias"):
        if name in given and given[name].ndim and given[name].shape[0]:
            return given[name].shape[0]
    raise CheckpointError(f"{where}: it has no stem: no 'conv1.weight' and no 'bn1.weight'")


def _num_blocks(given: Mapping[str, Tensor], layer: str) -> int:
    indices = {m[1] for name in given if (m := re.match(rf"{layer}\.(\d+)\.", name))}
    return len(indices)


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
