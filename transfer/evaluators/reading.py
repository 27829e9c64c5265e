"""The reading side of a predictions file: every row checked, a bounded part of it in memory.

Ours have a row a line; others are ordinary JSON, as Detectron2's ``coco_instances_results.json``.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from sslbench.datasets import Dataset
from transfer.evaluators.json_rows import pieces
from transfer.evaluators.predictions import PredictionError
from transfer.evaluators.rle import mask_sizes

Row = dict[str, Any]
Used = TypeVar("Used")
Kind = Literal["box", "mask"]
FIELD = {"box": "bbox", "mask": "segmentation"}
MOST_ROWS = 500_000  # held at once where the rows of an image are scattered over the file


class _Scattered(Exception):
    """The rows of an image do not lie together."""


class Predictions:
    """A file whose rows are checked while they are used.

    Args:
        kinds: what each row must hold.
        keep: ids of images whose rows stay in memory, in ``kept``.
    """

    def __init__(
        self,
        path: Path,
        dataset: Dataset,
        kinds: Sequence[Kind] = ("box",),
        keep: Collection[Any] = (),
    ) -> None:
        self.path, self.keep = path, keep
        self.check = _Check(path, dataset, kinds)
        self.num_rows = 0
        self.kept: list[Row] = []

    def feed(self, use: Callable[[Iterator[list[Row]]], Used]) -> Used:
        """Give all rows to ``use``, each batch with all rows of its images, in the file's order.

        ``use`` is called once more where the rows of an image turn out not to lie together.

        Raises:
            PredictionError: the file is damaged or no list, or a row lacks something, has a number
                that is none, or does not belong to the data; names file, row and the way out.
        """
        try:
            return use(self._in_one_reading())
        except _Scattered:
            return use(self._gathered())

    def _checked(self) -> Iterator[tuple[list[Row], npt.NDArray[np.int32]]]:
        """Rows with the places of their images."""
        self.num_rows, self.kept = 0, []
        for rows in pieces(self.path):
            images = self.check(rows, self.num_rows)
            self.num_rows += len(rows)
            if self.keep:
                self.kept += [row for row in rows if row["image_id"] in self.keep]
            if rows:
                yield rows, images

    def _in_one_reading(self) -> Iterator[list[Row]]:
        held: list[Row] = []
        done = np.zeros(len(self.check.place_of), bool)
        last = -1
        for rows, images in self._checked():
            starts = np.flatnonzero(np.diff(images, prepend=last))
            begun = images[starts]
            if done[begun].any() or len(np.unique(begun)) < len(begun):
                raise _Scattered
            done[begun] = True
            last = images[-1]
            if len(starts):
                yield held + rows[: starts[-1]]
                held = rows[starts[-1] :]
            else:
                held += rows
        yield held

    def _gathered(self) -> Iterator[list[Row]]:
        """Read once to count, then several times, each time for a part of the images."""
        ids = list(self.check.place_of)
        counts = np.zeros(len(ids), np.int64)
        for _, images in self._checked():
            counts += np.bincount(images, minlength=len(ids))
        parts = np.cumsum(counts) // MOST_ROWS
        for part in np.unique(parts):
            wanted = {ids[index] for index in np.flatnonzero(parts == part)}
            yield [row for rows in pieces(self.path) for row in rows if row["image_id"] in wanted]


class _Check:
    """Checks thousands of rows at once, and row by row to name what is wrong."""

    def __init__(self, path: Path, dataset: Dataset, kinds: Sequence[Kind]) -> None:
        self.path, self.dataset, self.kinds = path, dataset, kinds
        self.place_of = {record.image_id: i for i, record in enumerate(dataset.records)}
        self.sizes = {record.image_id: [record.height, record.width] for record in dataset.records}
        self.categories = set(dataset.category_ids)

    def __call__(self, rows: list[Any], first: int) -> npt.NDArray[np.int32]:
        """Return the place of each row's image; ``first`` is the number of the first row."""
        if not self._are_sound(rows):
            for number, row in enumerate(rows, start=first):
                if flaw := self.flaw(row):
                    raise PredictionError(f"{self.path}: detection {number} {flaw}")
        return np.array([self.place_of[row["image_id"]] for row in rows], np.int32)

    def _are_sound(self, rows: list[Any]) -> bool:
        """The verdict of ``flaw`` on all rows together."""
        try:
            images = [row["image_id"] for row in rows]
            categories = [row["category_id"] for row in rows]
            return (
                _are_in(images, self.place_of)
                and _are_in(categories, self.categories)
                and _are_numbers([row["score"] for row in rows], (len(rows),))
                and ("box" not in self.kinds or _are_boxes([row["bbox"] for row in rows]))
                and ("mask" not in self.kinds or self._are_masks(images, rows))
            )
        except (KeyError, TypeError, ValueError):
            return False

    def _are_masks(self, images: list[Any], rows: list[Row]) -> bool:
        sizes = [self.sizes[image] for image in images]
        given = [row["segmentation"]["size"] for row in rows]
        if given != sizes or any(type(side) is not int for size in given for side in size):
            return False
        pixels_N = mask_sizes([row["segmentation"]["counts"] for row in rows]).pixels_N
        return bool((pixels_N == np.array(sizes).reshape(-1, 2).prod(axis=1)).all())

    def flaw(self, row: Any) -> str | None:
        """Say what is wrong with one row and what to do, if anything."""
        if not isinstance(row, dict):
            return f"is {_brief(row)}, not an object with image_id, category_id, score ..."
        for check in (self._key_flaw, self._belonging_flaw, _score_flaw):
            if found := check(row):
                return found
        if "box" in self.kinds and (found := _box_flaw(row)):
            return found
        return self._mask_flaw(row) if "mask" in self.kinds else None

    def _key_flaw(self, row: Row) -> str | None:
        missing = [key for key in ("image_id", "category_id", "score") if key not in row]
        missing += [FIELD[kind] for kind in self.kinds if FIELD[kind] not in row]
        if not missing:
            return None
        needs = " and ".join(FIELD[kind] for kind in self.kinds)
        told = f"has no {', '.join(missing)}; each row needs image_id, category_id, score, {needs}"
        partly = len(self.kinds) > 1 and len({*FIELD.values()} & {*missing}) == 1
        return f"{told} (a file of one of the two: --only box, --only mask)" if partly else told

    def _belonging_flaw(self, row: Row) -> str | None:
        name = f"{self.dataset.name}/{self.dataset.split}"
        if not _is_in(row["image_id"], self.place_of):
            example = next(iter(self.place_of), None)
            return (
                f"is for image {_brief(row['image_id'])}, which is not in {name} (its ids are like "
                f"{example!r}); was it made for another split?"
            )
        if not _is_in(row["category_id"], self.categories):
            return (
                f"has the unknown category_id {_brief(row['category_id'])}; {name} has "
                f"{min(self.categories)} to {max(self.categories)}, as its annotations number them "
                "(not from 0, not without gaps)"
            )
        return None

    def _mask_flaw(self, row: Row) -> str | None:
        mask, size = row["segmentation"], self.sizes[row["image_id"]]
        if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str):
            return (
                f"has the segmentation {_brief(mask)}; it must be COCO's compressed RLE, "
                '{"size": [height, width], "counts": "..."}, as pycocotools.mask.encode writes it'
            )
        given = mask.get("size")
        if given != size or any(type(side) is not int for side in given):
            return f"has a mask of size {_brief(given)}, its image is {size} (height, width)"
        if mask_sizes([mask["counts"]]).pixels_N[0] != size[0] * size[1]:
            return f"has a damaged mask: its runs do not cover {size[0]} x {size[1]} pixels"
        return None


def _are_numbers(values: list[Any], shape: tuple[int, ...]) -> bool:
    array = np.array(values)
    return array.shape == shape and array.dtype.kind in "fiu" and bool(np.isfinite(array).all())


def _are_boxes(boxes: list[Any]) -> bool:
    return _are_numbers(boxes, (len(boxes), 4)) and min(min(box[2:]) for box in boxes) >= 0


def _score_flaw(row: Row) -> str | None:
    if _is_number(row["score"]):
        return None
    return (
        f"has the score {_brief(row['score'])}, not a finite number; a training that diverged "
        "writes such"
    )


def _box_flaw(row: Row) -> str | None:
    box = row["bbox"]
    is_box = isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))
    if is_box and min(box[2:]) >= 0:
        return None
    return f"has the bbox {_brief(box)}; it must be x, y, width, height in pixels, both sizes >= 0"


def _is_number(value: Any) -> bool:
    # compared, not converted: a whole number may be too large for a float
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _are_in(values: Collection[Any], known: Collection[Any]) -> bool:
    """Whether all are known ids; 1.0 and true equal 1, and hotcoco fails on them."""
    kind = type(next(iter(known)))
    return all(type(value) is kind for value in values) and all(map(known.__contains__, values))


def _is_in(value: Any, known: Collection[Any]) -> bool:
    try:
        return _are_in([value], known)
    except TypeError:  # a list has no hash
        return False


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
