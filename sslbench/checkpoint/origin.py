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

from sslbench.checkpoint.errors import CheckpointError

# timm's networks with anti-aliased strides have a plain ResNet's keys and shapes.
LOOKALIKE = re.compile(
    r"resnet(?:aa|blur)\d+\w*|(?<![a-z])caffe(?![a-z])|(?<![a-z])msra(?![a-z])", re.I
)
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
    plain = {k: _short(v) for k, v in top.items() if isinstance(k, str) and _is_plain(v)}
    for name in OPTIONS:
        inner = {k: _short(v) for k, v in _options(top.get(name)).items() if _is_plain(v)}
        plain |= {name: inner} if inner else {}
    return plain


def _options(value: Any) -> dict[str, Any]:
    if isinstance(value, argparse.Namespace):
        return vars(value)
    return {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 4 and all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool)


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}... ({len(value)} characters)"
    return value


def require_plain_resnet(top: Mapping[str, Any], path: Path) -> None:
    """Refuse a network that only looks like a ResNet, where the file or its neighbour says so.

    Raises:
        CheckpointError: the architecture is a look-alike.
    """
    for place, text in _architectures(top, path):
        found = LOOKALIKE.search(text)
        if found:
            raise CheckpointError(
                f"{path}: {place} says {text!r}: such a network has a ResNet's names and shapes "
                "but strides, pools or orders its channels otherwise, and its weights would give "
                "wrong features in silence. Take a plain ResNet's checkpoint; if it is one all the "
                "same, pass its prefix as the branch ('.' for none)"
            )
    if _neighbour(path).get("downsample_in_bottleneck") is True:
        raise CheckpointError(
            f"{path}: config.json beside it says downsample_in_bottleneck: the stride sits in the "
            "1x1 convolution, and such weights give wrong features in a ResNet with the stride "
            "in the 3x3. Take a checkpoint of the usual kind"
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


def _neighbour(path: Path) -> Mapping[str, Any]:
    """Return the config.json that Hugging Face's hub puts beside weights."""
    try:
        found = json.loads((path.parent / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    is_theirs = isinstance(found, Mapping) and {"architectures", "architecture"} & found.keys()
    return found if is_theirs else {}


def require_known_pixels(top: Mapping[str, Any], path: Path) -> None:
    """Refuse Detectron2 weights of unknown colour order: its own start from BGR and 1x1 strides.

    Raises:
        CheckpointError: neither metadata nor the converter's name says what the trunk expects.
    """
    metadata, author = _options(top.get("metadata")), top.get("__author__")
    order, stride = metadata.get("format"), metadata.get("stride_in_1x1")
    if order == "RGB" and not stride:
        return
    if order is None and author in RGB_AUTHORS:
        return
    said = f"its metadata say {order} and stride_in_1x1 {stride}" if order else f"author {author!r}"
    raise CheckpointError(
        f"{path}: Detectron2 weights ({said}) of which nobody says that they expect RGB pixels and "
        "have the stride in the 3x3; Detectron2's own start from MSRA's, which do not. If you know "
        "that these do, pass the prefix of the trunk as the branch ('.' for none)"
    )
