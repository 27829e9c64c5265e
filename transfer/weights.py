"""Files of converted weights, with what they say about themselves; known by content, not by name.

A detector's weights are ``{"__author__": "sslbench", "metadata": {...}, "model": {name: float32}}``
as a pickle of arrays (``.pkl``) or a torch file of tensors (``.pth``), both of which Detectron2's
own checkpointer reads; names are exact, so there is no ``matching_heuristics``. Under torchvision's
names the tensors stand under ``state_dict``. In a ``.safetensors`` file the tensors stand by
themselves and everything else in the header, as JSON.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transfer import weight_files
from transfer.layouts import LAYOUTS
from transfer.weight_files import PICKLE_PROTOCOL, Arrays, WeightsError

__all__ = [
    "PICKLE_PROTOCOL",
    "Arrays",
    "WeightsError",
    "is_weights",
    "load_weights",
    "write_weights",
]

AUTHOR = "sslbench"
WRITERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    ".pkl": weight_files.write_pickle,
    ".pth": weight_files.write_torch_file,
    ".safetensors": weight_files.write_safetensors,
}
READERS: dict[str, Callable[[Path], Any]] = {
    "pkl": weight_files.read_pickle,
    "pth": weight_files.read_torch_file,
    "safetensors": weight_files.read_safetensors,
}
SIGNATURE = re.compile(rb"__author__.{1,8}sslbench", re.DOTALL)  # the same in all three
WITHIN = 4096  # bytes from the beginning, or the end of a file of release 0.1


def _three_numbers(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    return all(type(number) in (int, float) and math.isfinite(number) for number in value)


# what a detector must do to a picture and where it strides, and which values it understands
TREATMENT: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: value in ("RGB", "BGR"),
    "pixel_mean": _three_numbers,
    "pixel_std": lambda value: _three_numbers(value) and all(value),
    "stride_in_1x1": lambda value: isinstance(value, bool),
}


def write_weights(path: Path, model: Arrays, metadata: Mapping[str, Any]) -> None:
    """Write the file atomically, in the format that its name ends with."""
    container = "state_dict" if metadata.get("layout") == "torchvision" else "model"
    # sorted, as in the header of safetensors: whichever file they came through, the same bytes
    said = dict(sorted(metadata.items()))
    content = {"__author__": AUTHOR, "metadata": said, container: model}
    WRITERS[path.suffix](path, content)


def is_weights(path: Path) -> bool:
    """Tell converted weights from a checkpoint by what the file begins with."""
    if not path.is_file() or weight_files.format_of(path) is None:
        return False
    with path.open("rb") as file:
        begins = file.read(WITHIN)
        file.seek(max(0, path.stat().st_size - WITHIN))
        return any(SIGNATURE.search(part) for part in (begins, file.read()))


def load_weights(path: Path | str) -> tuple[Arrays, dict[str, Any]]:
    """Read weights and metadata; no code that the file may carry is run.

    Raises:
        WeightsError: the file is something else, is damaged, or holds other than float32 arrays.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; pass the file of weights inside it")
    content = READERS[weight_files.format_of(path) or "pth"](path)
    if not isinstance(content, dict) or content.get("__author__") != AUTHOR:
        raise WeightsError(
            f"{path} was not written by 'python -m transfer convert'; convert the checkpoint first"
        )
    model, metadata = content.get("model", content.get("state_dict")), content.get("metadata")
    if not isinstance(model, dict) or not model or not isinstance(metadata, dict):
        raise WeightsError(f"{path} holds no weights; convert the checkpoint again")
    layout = metadata.get("layout", "c4")
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise WeightsError(f"{path} says layout {layout!r}; known: {', '.join(LAYOUTS)}")
    _require_treatment(path, metadata)
    for name, value in model.items():
        if not isinstance(value, np.ndarray) or value.dtype != np.float32:
            raise WeightsError(f"{path}: {name!r} is not a float32 array; convert again")
    return model, metadata


def _require_treatment(path: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse what no detector can do to pixels."""
    wrong = [n for n, fits in TREATMENT.items() if n in metadata and not fits(metadata[n])]
    if wrong:
        raise WeightsError(
            f"{path} says {wrong[0]} {metadata[wrong[0]]!r}, which no detector can do; it was "
            "changed after it was written. Convert the checkpoint again"
        )
