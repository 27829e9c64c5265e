"""COCO instances JSON, and the frame that LVIS shares with it."""

import contextlib
import gc
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sslbench.datasets.annotations import Frame, objects_by_image
from sslbench.datasets.images import index_folder
from sslbench.datasets.records import Dataset, Record
from sslbench.datasets.roots import DataError, shorten, unknown_split

SPLITS = ("train", "val")


def coco_json(split: str, folder: Path) -> Path:
    """Return the path of the instances JSON of a COCO 2017 split."""
    if split not in SPLITS:
        raise unknown_split("coco2017", split, SPLITS, folder)
    return folder / "annotations" / f"instances_{split}2017.json"


def panoptic_json(split: str, folder: Path) -> Path:
    """Return the path of a split's panoptic JSON; the PNGs lie in the folder of that name."""
    if split not in SPLITS:
        raise unknown_split("coco2017", split, SPLITS, folder)
    return folder / "annotations" / f"panoptic_{split}2017.json"


def coco_images(split: str, folder: Path) -> Path:
    """Return the image folder of a COCO 2017 split."""
    if split not in SPLITS:
        raise unknown_split("coco2017", split, SPLITS, folder)
    return folder / f"{split}2017"


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Pause the cycle collector, which would walk a million new objects again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@no_collection()
def read_coco(dataset: str, split: str, folder: Path) -> Dataset:
    """Read a COCO split from the folder that holds ``annotations``."""
    image_folder = coco_images(split, folder)
    names = set(index_folder(image_folder).values())
    json_path = coco_json(split, folder)
    content = load_json(json_path)
    paths = {
        image["id"]: image_folder / image["file_name"] if image["file_name"] in names else None
        for image in image_rows(content, ("file_name",), json_path)
    }
    return assemble(dataset, split, content, paths, json_path, image_folder)


def load_json(json_path: Path) -> dict[str, Any]:
    """Read an annotation file whose outermost value is an object."""
    try:
        # as text: parsing bytes would keep both of them, of LVIS a gigabyte each
        text = json_path.read_text(encoding="utf-8-sig")
        is_empty = not text or text.isspace()
        content = None if is_empty else json.loads(text)
    except FileNotFoundError:
        raise DataError(
            f"annotation file {json_path} is not there; unpack the annotations"
        ) from None
    except OSError as error:
        raise DataError(f"annotation file {json_path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or meant to do harm
        raise DataError(
            f"{json_path} is not valid JSON ({error}); it was cut short: fetch it again"
        ) from None
    if is_empty:
        raise DataError(f"{json_path} is not valid JSON: it is empty; fetch it again")
    if not isinstance(content, dict):
        raise DataError(f"{json_path} must hold an object with images, annotations and categories")
    return content


def json_rows(
    content: Mapping[str, Any], key: str, fields: Iterable[str], json_path: Path
) -> list[dict[str, Any]]:
    """Return the list ``content[key]`` once every entry is an object that has ``fields``."""
    rows = content.get(key)
    if not isinstance(rows, list):
        raise DataError(f"{json_path} has no list {key!r}: not an instances file")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{json_path}: {key} entry number {number} is {row!r}, not an object")
        for field in fields:
            if field not in row:
                raise DataError(
                    f"{json_path}: {key} entry with id {row.get('id')} has no {field!r}"
                )
    return rows


def image_rows(
    content: Mapping[str, Any], fields: Iterable[str], json_path: Path
) -> list[dict[str, Any]]:
    """Return the images once each has its own id, a size and ``fields``."""
    rows = json_rows(content, "images", ("id", "height", "width", *fields), json_path)
    if not rows:
        raise DataError(f"{json_path} lists no image; fetch it again")
    _require_own_ids(rows, "images", json_path)
    for row in rows:
        for side in ("height", "width"):
            if type(row[side]) is not int or row[side] < 1:
                raise DataError(
                    f"{json_path}: image {row['id']} has the {side} {row[side]!r}; it must be a "
                    "whole number of pixels from 1 on. Fetch the file again"
                )
        if not isinstance(row.get("file_name", ""), str):
            raise DataError(
                f"{json_path}: image {row['id']} has the file_name {row['file_name']!r}, not a text"
            )
    return rows


def _require_own_ids(rows: Iterable[Mapping[str, Any]], key: str, json_path: Path) -> None:
    seen: set[int] = set()
    for row in rows:
        if type(row["id"]) is not int:
            raise DataError(f"{json_path}: {key} has the id {row['id']!r}, not a whole number")
        if row["id"] in seen:
            raise DataError(f"{json_path}: {key} has the id {row['id']} twice; drop one of the two")
        seen.add(row["id"])


def assemble(
    dataset: str,
    split: str,
    content: Mapping[str, Any],
    paths: Mapping[int, Path | None],
    json_path: Path,
    image_folder: Path,
) -> Dataset:
    """Build the data set of a parsed file.

    Args:
        paths: image id -> its file, or None where it is not on disk.
    """
    absent = [image_id for image_id, path in paths.items() if path is None]
    if absent:
        raise DataError(
            f"{json_path} names {len(absent)} images that are not in {image_folder}: "
            f"ids {shorten(absent)}. Complete the images or take them out of the annotations"
        )
    names_by_id = _categories(content, json_path)
    index_of = {number: index for index, number in enumerate(names_by_id)}
    images = sorted(content["images"], key=lambda image: image["id"])
    frames = {
        image["id"]: Frame(path, image["height"], image["width"])
        for image in images
        if (path := paths[image["id"]]) is not None
    }
    rows = json_rows(content, "annotations", ("id", "image_id", "category_id", "bbox"), json_path)
    objects, tally = objects_by_image(rows, frames, index_of, json_path)
    records = [
        Record(image_id, *frame, tuple(objects.get(image_id, ())))
        for image_id, frame in frames.items()
    ]
    return Dataset(
        name=dataset,
        split=split,
        classes=tuple(names_by_id.values()),
        category_ids=tuple(names_by_id),
        records=tuple(records),
        annotation_path=json_path,
        notes=tally.lines(json_path.name),
    )


def _categories(content: Mapping[str, Any], json_path: Path) -> dict[int, str]:
    """Category id -> name, by ascending id; the ids may have gaps, as COCO's have."""
    rows = json_rows(content, "categories", ("id", "name"), json_path)
    if not rows:
        raise DataError(f"{json_path} lists no category; fetch it again")
    _require_own_ids(rows, "categories", json_path)
    named: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        if not isinstance(row["name"], str) or row["name"] in named:
            raise DataError(
                f"{json_path}: category {row['id']} has the name {row['name']!r}, which is "
                "no text or another category's; rename it"
            )
        named[row["name"]] = row["id"]
    return {number: name for name, number in named.items()}
