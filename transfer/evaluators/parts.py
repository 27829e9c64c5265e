"""Predictions while they are made: a file per process, merged in the order of the images.

A line is ``[index of the image, [row, ...]]`` and is added when the image is done, so that neither
predicting nor merging holds more than one image's rows. A kill leaves half a line at most, and an
image without a whole line is predicted again, by however many processes there are then.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sslbench import dist
from transfer.evaluators.predictions import PredictionError, write_predictions


class PredictionParts:
    """The unfinished predictions of one detector for one test split.

    Args:
        folder: of the parts; whoever trains the detector anew discards it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def done(self) -> set[int]:
        """Indices of the images that are predicted, by whichever process."""
        return {index for path in self._paths() for index, _ in _whole_lines(path)}

    @contextlib.contextmanager
    def writer(self) -> Iterator["PartWriter"]:
        """Open this process's file to add images to."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank_{dist.rank():04d}.jsonl"
        _cut_half_line(path)
        with path.open("ab") as file:
            yield PartWriter(file)

    def merge(self, num_images: int, path: Path) -> None:
        """Write the predictions file, atomically, and remove the parts.

        Raises:
            PredictionError: an image is missing.
        """
        write_predictions(path, self._rows(num_images))
        self.discard()

    def discard(self) -> None:
        """Remove the parts, of however many processes."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _rows(self, num_images: int) -> Iterator[dict[str, Any]]:
        places = {i: (path, at) for path in self._paths() for i, at in _whole_lines(path)}
        missing = sorted(set(range(num_images)) - set(places))
        if missing:
            raise PredictionError(
                f"{self.folder}: {len(missing)} of {num_images} images are not predicted, the "
                f"first is number {missing[0]} of the split; run the same command again"
            )
        with contextlib.ExitStack() as stack:
            files = {path: stack.enter_context(path.open("rb")) for path in self._paths()}
            for index in range(num_images):
                path, at = places[index]
                files[path].seek(at)
                yield from json.loads(files[path].readline())[1]

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("rank_*.jsonl"))


class PartWriter:
    """One process's file of finished images."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def add(self, index: int, rows: Iterable[dict[str, Any]]) -> None:
        """Add an image's detections."""
        self._file.write(json.dumps([index, list(rows)]).encode() + b"\n")
        self._file.flush()  # what the system holds outlives this process


def _whole_lines(path: Path) -> Iterator[tuple[int, int]]:
    """Index of the image and place in the file of every line, up to one that is cut short."""
    with path.open("rb") as file:
        at = 0
        for line in file:
            if not (line.startswith(b"[") and line.endswith(b"]]\n")):
                return
            yield int(line[1 : line.index(b",")]), at
            at += len(line)


def _cut_half_line(path: Path) -> None:
    """Take off what a kill left behind the last whole line."""
    if not path.exists():
        return
    starts = [at for _, at in _whole_lines(path)]
    with path.open("rb+") as file:
        file.seek(starts[-1] if starts else 0)
        if starts:
            file.readline()
        file.truncate()
