"""COCO instances JSON and LVIS v1 JSON: boxes, polygons, RLE crowds."""

import contextlib
import gc
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sslbench.datasets.images import index_folder
from sslbench.datasets.records import Box, Dataset, Object, Record
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


def lvis_json(split: str, folder: Path) -> Path:
    """Return the path of the JSON of an LVIS v1 split."""
    if split not in SPLITS:
        raise unknown_split("lvis_v1", split, SPLITS, folder)
    return folder / f"lvis_v1_{split}.json"


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the cycle collector, which would walk a million new objects again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_no_collection()
def read_coco(dataset: str, split: str, folder: Path) -> Dataset:
    """Read a COCO split from the folder that holds ``annotations``."""
    image_folder = coco_images(split, folder)
    names = set(index_folder(image_folder).values())
    json_path = coco_json(split, folder)
    content = load_json(json_path)
    paths = {
        image["id"]: image_folder / image["file_name"] if image["file_name"] in names else None
        for image in json_rows(content, "images", ("id", "file_name"), json_path)
    }
    return _dataset(dataset, split, content, paths, json_path, image_folder)


@_no_collection()
def read_lvis(dataset: str, split: str, folder: Path, coco_folder: Path) -> Dataset:
    """Read an LVIS split; ``coco_url`` places each image (val has images of train2017 too)."""
    json_path = lvis_json(split, folder)
    content = load_json(json_path)
    rows = json_rows(content, "images", ("id", "coco_url"), json_path)
    places = {image["id"]: tuple(image["coco_url"].rsplit("/", 2)[-2:]) for image in rows}
    present = {
        (name, file)
        for name in {place[0] for place in places.values()}
        if (coco_folder / name).is_dir()
        for file in index_folder(coco_folder / name).values()
    }
    paths = {
        image_id: coco_folder.joinpath(*place) if place in present else None
        for image_id, place in places.items()
    }
    return _dataset(dataset, split, content, paths, json_path, coco_folder)


def load_json(json_path: Path) -> dict[str, Any]:
    """Read an annotation file whose outermost value is an object."""
    try:
        content = json.loads(json_path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"annotation file {json_path} is not there; unpack the annotations"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{json_path} is not valid JSON ({error}); it was cut short: fetch it again"
        ) from None
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


def _dataset(
    dataset: str,
    split: str,
    content: Mapping[str, Any],
    paths: Mapping[int, Path | None],
    json_path: Path,
    image_folder: Path,
) -> Dataset:
    images = json_rows(content, "images", ("height", "width"), json_path)
    absent = [image_id for image_id, path in paths.items() if path is None]
    if absent:
        raise DataError(
            f"{json_path} names {len(absent)} images that are not in {image_folder}: "
            f"ids {shorten(absent)}. Complete the images or take them out of the annotations"
        )
    if not images or len(paths) != len(images):
        raise DataError(f"{json_path} has {len(images)} images with {len(paths)} different ids")
    categories = sorted(
        json_rows(content, "categories", ("id", "name"), json_path), key=lambda c: c["id"]
    )
    index_of = {category["id"]: index for index, category in enumerate(categories)}
    objects = _objects_by_image(content, paths, index_of, json_path)
    records = []
    for image in sorted(images, key=lambda image: image["id"]):
        path = paths[image["id"]]
        assert path is not None
        found = tuple(objects.get(image["id"], ()))
        records.append(Record(image["id"], path, image["height"], image["width"], found))
    names = tuple(category["name"] for category in categories)
    return Dataset(dataset, split, names, tuple(index_of), tuple(records), json_path)


def _objects_by_image(
    content: Mapping[str, Any],
    paths: Mapping[int, Path | None],
    index_of: Mapping[int, int],
    json_path: Path,
) -> dict[int, list[Object]]:
    objects = defaultdict(list)
    fields = ("id", "image_id", "category_id", "bbox")
    for row in json_rows(content, "annotations", fields, json_path):
        for key, known in (("image_id", paths), ("category_id", index_of)):
            if row[key] not in known:
                raise DataError(
                    f"{json_path}: annotation {row['id']} has the unknown {key} {row[key]}"
                )
        objects[row["image_id"]].append(_object(row, index_of, json_path))
    return objects


def _object(row: Mapping[str, Any], index_of: Mapping[int, int], json_path: Path) -> Object:
    try:
        left, top, width, height = row["bbox"]
        # COCO itself has a few boxes of zero height; negative or infinite ones are damage.
        possible = math.isfinite(left + top + width + height) and width >= 0 and height >= 0
    except (TypeError, ValueError):
        possible = False
    if not possible:
        raise DataError(f"{json_path}: annotation {row['id']} has the bad bbox {row['bbox']}")
    box: Box = (left, top, left + width, top + height)
    return Object(
        category=index_of[row["category_id"]],
        box=box,
        area=row.get("area", width * height),
        crowd=bool(row.get("iscrowd", 0)),
        difficult=False,
        segmentation=row.get("segmentation"),
        annotation_id=row["id"],
    )
