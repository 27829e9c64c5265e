"""Reading the weights of a detector, whoever wrote them: names as they stand, nothing executed.

Files of ``python -m transfer convert`` say what they need; of those of other converters it is known
only what their container tells: whether Detectron2 matches names exactly or by their ends.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslbench.checkpoint import CheckpointError
from sslbench.checkpoint.reading import read_tensors
from sslbench.resnet import BLOCKS, PIXEL_MEAN, PIXEL_STD, STEM_CHANNELS
from transfer.verify.findings import Finding, VerifyError
from transfer.weights import TREATMENT, is_weights, load_weights

FIRST_CONVOLUTION = re.compile(r"(?:^|\.)res([2-5])\.(\d+)\.conv([123])\.weight$")
STEM = re.compile(r"(?:^|\.)stem\.conv1\.weight$")
CAFFE2_NAME = re.compile(r"^res2_0_branch2a_w$")
ZIP_MAGIC, OLD_TORCH_MAGIC = b"PK\x03\x04", b"\x80\x02\x8a\n"
TORCHVISION_NAME = re.compile(r"(?:^|\.)layer1\.0\.conv1\.weight$")


@dataclass(frozen=True)
class Treatment:
    """What a detector does to a picture's values, and where its bottlenecks stride."""

    channel_order: str = "RGB"
    mean: tuple[float, ...] = PIXEL_MEAN
    std: tuple[float, ...] = PIXEL_STD
    stride_in_1x1: bool = False


@dataclass(frozen=True)
class DetectorFile:
    """Weights under Detectron2's names, and how Detectron2 would look at the file."""

    path: Path
    tensors: Mapping[str, Tensor]  # names as they stand in the file; float32 but for counters
    heuristics: bool  # names are matched by their ends
    author: str
    depth: int
    width: float
    needs: Treatment  # as the file says, else that of torchvision's networks
    metadata: Mapping[str, Any]  # empty in files of other converters


def read_detector_file(path: Path, *, allow_pickle: bool) -> DetectorFile:
    """Read ``path``; of a pickle that we did not write only with ``allow_pickle``.

    Raises:
        VerifyError: it holds no ResNet under Detectron2's names.
        WeightsError: we wrote it, and it was damaged or changed since.
        CheckpointError: it cannot be read.
    """
    if not is_weights(path):
        return _foreign(path, allow_pickle)
    arrays, metadata = load_weights(path)
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    return _described(path, tensors, {"__author__": "sslbench"}, metadata)


def _foreign(path: Path, allow_pickle: bool) -> DetectorFile:
    try:
        top = read_tensors(path, allow_pickle)
    except CheckpointError as error:
        if allow_pickle or not path.is_file():
            raise
        raise VerifyError(f"{error}; or verify it with --allow-pickle") from None
    inner = top.get("model")
    model = inner if isinstance(inner, Mapping) else top
    tensors = {n: _float(v) for n, v in model.items() if isinstance(v, Tensor)}
    if not isinstance(inner, Mapping):
        # what Detectron2's checkpointer makes of it: a flag among the tensors is none
        is_pkl = path.suffix == ".pkl"
        top = {"__author__": "Caffe2", "matching_heuristics": True} if is_pkl else {}
    return _described(path, tensors, top, {})


def container_findings(file: DetectorFile) -> list[Finding]:
    """What stops Detectron2 from opening a file, which it decides by the ending of the name."""
    with file.path.open("rb") as opened:
        head = opened.read(4)
    is_torch = head.startswith((ZIP_MAGIC, OLD_TORCH_MAGIC))
    is_pkl = file.path.suffix == ".pkl"
    if file.path.suffix == ".safetensors":
        text, way_out = "Detectron2 reads no safetensors", "Convert again with --format pkl or pth"
        return [Finding("warning", "weights", text, way_out)]
    if is_pkl and is_torch:
        text = "a torch file by its content, and Detectron2 opens .pkl as a plain pickle"
        return [Finding("error", "weights", text, "Name it .pth")]
    if not is_pkl and not is_torch:
        text = "a plain pickle by its content, and Detectron2 opens only .pkl as one"
        return [Finding("error", "weights", text, "Name it .pkl")]
    if is_pkl and not file.author:
        text = "a pickle without '__author__' beside 'model', at which Detectron2 stops"
        return [Finding("error", "weights", text, "Write '__author__': 'NAME' beside 'model'")]
    return []


def _float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _described(
    path: Path, tensors: dict[str, Tensor], top: Mapping[str, Any], metadata: Mapping[str, Any]
) -> DetectorFile:
    depth, width = _architecture(path, tensors)
    return DetectorFile(
        path=path,
        tensors=tensors,
        heuristics=bool(top.get("matching_heuristics", False)),
        author=str(top.get("__author__", "")),
        depth=depth,
        width=width,
        needs=_needs(path, metadata),
        metadata=metadata,
    )


def _needs(path: Path, metadata: Mapping[str, Any]) -> Treatment:
    missing = [name for name in TREATMENT if name not in metadata]
    if len(missing) == len(TREATMENT):
        return Treatment()
    if missing:
        raise VerifyError(f"{path} does not say its {missing[0]}; convert the checkpoint again")
    return Treatment(
        channel_order=metadata["format"],
        mean=tuple(metadata["pixel_mean"]),
        std=tuple(metadata["pixel_std"]),
        stride_in_1x1=metadata["stride_in_1x1"],
    )


def _architecture(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, float]:
    found = [m for name in tensors if (m := FIRST_CONVOLUTION.search(name))]
    stems = [value for name, value in tensors.items() if STEM.search(name)]
    if not found or not stems:
        raise VerifyError(f"{path}: {_why_no_trunk(tensors)}")
    counts = tuple(1 + max((int(m[2]) for m in found if m[1] == s), default=-1) for s in "2345")
    bottleneck = any(m[3] == "3" for m in found)
    for depth, blocks in BLOCKS.items():
        if blocks == counts and bottleneck == (depth >= 50):
            return depth, stems[0].shape[0] / STEM_CHANNELS
    raise VerifyError(
        f"{path}: res2 to res5 have {counts} {'bottleneck' if bottleneck else 'basic'} blocks, "
        f"which is none of ResNet-{'/'.join(map(str, BLOCKS))}; blocks are missing, or it is "
        "another network. Convert the checkpoint again"
    )


def _why_no_trunk(tensors: Mapping[str, Tensor]) -> str:
    if any(CAFFE2_NAME.match(name) for name in tensors):
        return (
            "Caffe2's names, as in the MSRA weights of Detectron2's model zoo. Such a network takes"
            " BGR with PIXEL_STD 1 and strides in the 1x1 convolution; it is no conversion of a "
            "self-supervised checkpoint. Pass the file that your converter wrote"
        )
    if any(TORCHVISION_NAME.search(name) for name in tensors):
        return (
            "torchvision's names (layer1...), of which Detectron2 would load nothing but the stem. "
            "Convert it first: python -m transfer convert CHECKPOINT --layout c4|fpn"
        )
    return (
        "no ResNet under Detectron2's names (stem.conv1, res2 to res5); its keys begin "
        f"{', '.join(list(tensors)[:3]) or '(none)'}. Pass converted weights first and the "
        "original checkpoint after --against"
    )
