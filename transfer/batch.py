"""A folder of checkpoints: all of them converted, one after the other, each into its own folder.

A pretraining run keeps its epochs as ``checkpoints/epoch_0100.pt`` and the newest as ``last.pt``;
other code bases write ``checkpoint_0100.pth.tar`` or ``epoch_100.pth`` side by side.
"""

import filecmp
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sslbench.stage import status
from transfer.convert import Convert, ConvertError, convert_to_folder

KEPT = "checkpoints"  # where a pretraining run has them
LAST = "last.pt"
ENDINGS = (".pt", ".pth", ".pth.tar", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class Outcome:
    """What became of one checkpoint."""

    checkpoint: Path
    folder: Path
    state: Literal["converted", "done before", "failed"]
    reason: str = ""  # of a failure


def checkpoints_in(folder: Path) -> list[Path]:
    """List a folder's checkpoints in the order of the numbers in their names.

    ``last.pt`` comes last, and not at all where it is a kept epoch once more.

    Raises:
        ConvertError: there are none.
    """
    within = folder / KEPT if (folder / KEPT).is_dir() else folder
    files = [p for p in within.iterdir() if p.is_file() and not p.name.startswith(".")]
    found = sorted((p for p in files if p.name.endswith(ENDINGS)), key=_order)
    if not found:
        raise ConvertError(
            f"{within} holds no checkpoints (files that end with {', '.join(ENDINGS)}); pass a "
            "checkpoint, a folder of several, or the run folder of a pretraining"
        )
    *before, last = found
    if last.name == LAST and any(filecmp.cmp(last, other, shallow=False) for other in before):
        return before
    return found


def convert_each(
    stage: Convert, checkpoints: list[Path], anchor: Mapping[str, Path], out: Path
) -> Iterator[Outcome]:
    """Convert one by one; a file that cannot be is told of, and the next one follows.

    Args:
        anchor: the input that all share, of that name; or nothing.
        out: gets one run folder for each.
    """
    for checkpoint, name in zip(checkpoints, _names(checkpoints), strict=True):
        folder = out / name
        is_done = status(folder) == "done"
        try:
            convert_to_folder(stage, {"checkpoint": checkpoint, **anchor}, folder)
        except ValueError as error:
            yield Outcome(checkpoint, folder, "failed", str(error))
        else:
            yield Outcome(checkpoint, folder, "done before" if is_done else "converted")


def _order(path: Path) -> tuple[bool, list[tuple[bool, int, str]]]:
    """Numbers in a name count as numbers: ``epoch_9`` stands before ``epoch_10``."""
    parts = [part for part in re.split(r"(\d+)", path.name) if part]
    ordered = [(p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts]
    return path.name == LAST, ordered


def _names(checkpoints: list[Path]) -> list[str]:
    """Names without endings; with them where two would be one."""
    stems = [_without_ending(path.name) for path in checkpoints]
    pairs = zip(checkpoints, stems, strict=True)
    return [path.name if stems.count(stem) > 1 else stem for path, stem in pairs]


def _without_ending(name: str) -> str:
    longest = max((e for e in ENDINGS if name.endswith(e)), key=len)
    return name.removesuffix(longest)
