"""What a file says about where it comes from: training metadata, and the pixels it was made for.

Names and shapes do not show everything: some networks with a ResNet's exact keys pool or stride
elsewhere, and a Detectron2 file may expect BGR. What the file or its neighbour says is heeded.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslbench.checkpoint.errors import CheckpointError, short
from sslbench.checkpoint.sections import oddity

# timm's networks with anti-aliased strides have a plain ResNet's keys and shapes.
LOOKALIKE = re.compile(
    r"resnet(?:aa|blur)\d+\w*|(?<![a-z])caffe(?![a-z])|(?<![a-z])msra(?![a-z])", re.I
)
# What OpenMMLab's configs say of networks that continue from Caffe's.
LIKE_CAFFES = re.compile(r"\bstyle['\"]?\s*[=:]\s*['\"]caffe['\"]|\bto_rgb['\"]?\s*[=:]\s*False")
USUAL_IN_HUGGING_FACE = {
    "downsample_in_bottleneck": False,
    "downsample_in_first_stage": False,
    "hidden_act": "relu",
}
ARCHITECTURE_KEYS = ("arch", "architecture", "architectures", "model", "model_name", "backbone")
OPTIONS = (
    "arch",
    "args",
    "opt",
    "hparams",
    "hyper_parameters",
    "meta",
    "config",
    "metadata",
    "saver",
)
# Whose converters to Detectron2 write what torchvision's network was trained on.
RGB_AUTHORS = ("torchvision", "MOCO", "OpenSelfSup", "PixPro", "Yue", "Yonglong", "Ceyuan")
MAX_TEXT = 200


def recorded(top: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values of a file: epoch, architecture, options of the training."""
    plain = {_short(k): _short(v) for k, v in top.items() if isinstance(k, str) and _is_plain(v)}
    for name in OPTIONS:
        inner = {_short(k): _short(v) for k, v in _options(top.get(name)).items() if _is_plain(v)}
        plain |= {name: inner} if inner else {}
    return plain


def _options(value: Any) -> dict[str, Any]:
    named = vars(value) if isinstance(value, argparse.Namespace) else value
    if not isinstance(named, Mapping):
        return {}
    return {str(k): v for k, v in named.items() if isinstance(k, str) or _is_number(k)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):  # not what is nested: it may contain itself
        return len(value) <= 4 and all(isinstance(v, str) or _is_number(v) for v in value)
    return isinstance(value, str) or _is_number(value)


def _is_number(value: Any) -> bool:
    """Tell a number that can be printed; Python refuses to print integers of 4,300 digits."""
    return isinstance(value, float) or (isinstance(value, int) and value.bit_length() <= 64)


def _short(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_short, value))
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}... ({len(value)} characters)"
    return value


def require_plain_resnet(top: Mapping[str, Any], path: Path) -> None:
    """Refuse a network that only looks like a ResNet, where the file or its neighbour says so.

    Raises:
        CheckpointError: the architecture is a look-alike.
    """
    said = [(place, text, LOOKALIKE.search(text)) for place, text in _architectures(top, path)]
    said += [(place, text, LIKE_CAFFES.search(text)) for place, text in _configs(top)]
    for place, text, found in said:
        if found:
            shown = short(found[0] if len(text) > MAX_TEXT else text)
            raise CheckpointError(
                f"{path}: {place} says {shown}: such a network has a ResNet's names and shapes but "
                "strides, pools or orders its channels otherwise, and its weights would give wrong "
                "features in silence. Take a plain ResNet's checkpoint; if it is one all the "
                "same, pass its prefix as the branch ('.' for none)"
            )
    neighbour = _neighbour(path)
    if not re.search("ResNet", str(neighbour.get("architectures"))):
        return
    for name, usual in USUAL_IN_HUGGING_FACE.items():
        if neighbour.get(name, usual) != usual:
            raise CheckpointError(
                f"{path}: config.json beside it says {name} {neighbour[name]!r}: strides or "
                "activations are not where a ResNet with the stride in the 3x3 has them, and such "
                "weights give wrong features in one. Take a checkpoint of the usual kind"
            )


def _architectures(top: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    yield "its name", path.name
    named = {"": top, **{f"{name}.": _options(top.get(name)) for name in OPTIONS}}
    for prefix, table in {**named, "config.json: ": _neighbour(path)}.items():
        for key in ARCHITECTURE_KEYS:
            values = table.get(key)
            for value in values if isinstance(values, list | tuple) else (values,):
                if isinstance(value, str):
                    yield prefix + key, value


def _configs(top: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The text of its config that a trainer of OpenMMLab puts into ``meta``."""
    for key in ("config", "cfg"):
        text = _options(top.get("meta")).get(key)
        if isinstance(text, str):
            yield f"meta.{key}", text


def _neighbour(path: Path) -> Mapping[str, Any]:
    """Return the config.json that Hugging Face's hub puts beside weights."""
    try:
        found = json.loads((path.parent / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    is_theirs = isinstance(found, Mapping) and {"architectures", "architecture"} & found.keys()
    return found if is_theirs else {}


def _plain(value: Any) -> Any:
    return _short(value) if value is None or _is_plain(value) else "of no use"


def require_known_pixels(top: Mapping[str, Any], path: Path) -> None:
    """Refuse Detectron2 weights of unknown colour order: its own start from BGR and 1x1 strides.

    Raises:
        CheckpointError: neither metadata nor the converter's name says what the trunk expects.
    """
    metadata, author = _options(top.get("metadata")), _plain(top.get("__author__"))
    order, stride = (_plain(metadata.get(name)) for name in ("format", "stride_in_1x1"))
    if (order, stride) == ("RGB", False):
        return
    if order is None and not stride and author in RGB_AUTHORS:
        return
    has_said = order is not None or stride is not None
    said = (
        f"its metadata say {order} and stride_in_1x1 {stride}" if has_said else f"author {author!r}"
    )
    raise CheckpointError(
        f"{path}: Detectron2 weights ({said}) of which nobody says that they expect RGB pixels and "
        "have the stride in the 3x3; Detectron2's own start from MSRA's, which do not. If you know "
        "that these do, pass the prefix of the trunk as the branch ('.' for none)"
    )


def require_rgb_mean(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse Detectron2 weights whose own mean of the pixels is in BGR's order.

    Raises:
        CheckpointError: red, the largest of ImageNet's means, comes last.
    """
    means = [v for k, v in tensors.items() if k.endswith("pixel_mean") and not oddity(v)]
    for mean in (m for m in means if m.dtype == torch.float32 and m.numel() == 3):
        _require_rgb(mean.flatten().tolist(), path)


def _require_rgb(mean: list[float], path: Path) -> None:
    if mean[0] < mean[2]:
        raise CheckpointError(
            f"{path}: its pixel_mean {mean} is in the order BGR, whatever else the file says. Take "
            "weights for RGB pixels; to read these all the same, pass the prefix of the trunk as "
            "the branch ('.' for none)"
        )
