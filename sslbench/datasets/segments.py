"""Annotated segments of every pixel: COCO's panoptic PNGs, and VOC's SegmentationObject.

A data spec that ends in ``:segments`` names them, as ``coco2017/val:segments``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sslbench.datasets import coco, voc
from sslbench.datasets.images import image_size, index_folder
from sslbench.datasets.roots import DataError, shorten

IGNORED = -1  # a pixel of no segment, or of a crowd that belongs to no single one
VOC_VOID = 255


class Regions(NamedTuple):
    """Annotated regions of an image.

    Args:
        numbers_HW: int32, a number from 0 on for each region, or ``IGNORED``.
        objects: the numbers that are objects; the others are background or stuff.
    """

    numbers_HW: npt.NDArray[np.int32]
    objects: frozenset[int]


@dataclass(frozen=True, slots=True)
class ObjectMap:
    """An image of VOC with its PNG of objects: 0 background, 1, 2, ... objects, 255 void."""

    path: Path  # the image
    map_path: Path
    height: int
    width: int

    def regions(self) -> Regions:
        """Read the PNG.

        Raises:
            DataError: it is damaged, has colours instead of numbers or another size.
        """
        pixels = _read_png(self.map_path)
        _require_size(pixels, self)
        if pixels.ndim != 2:
            raise DataError(f"{self.map_path} has colours instead of numbers; unpack VOC's own")
        numbers_HW = pixels.astype(np.int32)
        numbers_HW[pixels == VOC_VOID] = IGNORED
        found = np.unique(numbers_HW)
        return Regions(numbers_HW, frozenset(found[found > 0].tolist()))


@dataclass(frozen=True, slots=True)
class PanopticMap:
    """An image of COCO with its panoptic PNG, whose colours are the ids of segments."""

    path: Path  # the image
    map_path: Path
    height: int
    width: int
    things: frozenset[int]  # ids
    stuff: frozenset[int]
    crowds: frozenset[int]

    def regions(self) -> Regions:
        """Read the PNG; crowds and pixels without a segment are ignored.

        Raises:
            DataError: it is damaged, or has an id that the JSON does not.
        """
        pixels = _read_png(self.map_path)
        _require_size(pixels, self)
        if pixels.ndim != 3:
            raise DataError(f"{self.map_path} has no colours; unpack COCO's panoptic PNGs again")
        red_HW, green_HW, blue_HW = (pixels[..., channel].astype(np.int32) for channel in range(3))
        ids_HW = red_HW + 256 * green_HW + 65536 * blue_HW
        known = np.array(sorted({0} | self.things | self.stuff | self.crowds), np.int32)
        places_HW = np.searchsorted(known, ids_HW).clip(max=len(known) - 1)
        if unknown := set(ids_HW[known[places_HW] != ids_HW].tolist()):
            raise DataError(f"{self.map_path} has segments that the JSON lacks: {shorten(unknown)}")
        is_thing = np.isin(known, list(self.things))
        counted = is_thing | np.isin(known, list(self.stuff))
        number = np.where(counted, np.arange(len(known)), IGNORED).astype(np.int32)
        return Regions(number[places_HW], frozenset(np.flatnonzero(is_thing).tolist()))


SegmentMap = ObjectMap | PanopticMap


def read_panoptic(split: str, folder: Path) -> tuple[PanopticMap, ...]:
    """Read COCO's panoptic JSON; the PNGs are read one by one, later."""
    json_path = coco.panoptic_json(split, folder)
    if not json_path.exists():
        raise DataError(
            f"{json_path} is not there: unpack COCO's panoptic annotations, or take the instances: "
            f"coco2017/{split}"
        )
    content = coco.load_json(json_path)
    image_folder, map_folder = coco.coco_images(split, folder), json_path.with_suffix("")
    present, maps = _names(image_folder), _names(map_folder)
    rows = coco.json_rows(content, "images", ("id", "file_name", "height", "width"), json_path)
    images = {row["id"]: row for row in rows}
    categories = coco.json_rows(content, "categories", ("id", "isthing"), json_path)
    is_thing = {row["id"]: bool(row["isthing"]) for row in categories}
    fields = ("image_id", "file_name", "segments_info")
    found = []
    for row in coco.json_rows(content, "annotations", fields, json_path):
        image = images.get(row["image_id"])
        if image is None:
            raise DataError(f"{json_path}: an annotation has the unknown image {row['image_id']}")
        for name, where, there in (
            (image["file_name"], image_folder, present),
            (row["file_name"], map_folder, maps),
        ):
            if name not in there:
                raise DataError(f"{json_path} names {name}, which is not in {where}; complete it")
        paths = image_folder / image["file_name"], map_folder / row["file_name"]
        ids = _things_stuff_crowds(row, is_thing, json_path)
        found.append(PanopticMap(*paths, image["height"], image["width"], *ids))
    return tuple(sorted(found, key=lambda item: item.path.name))


def _things_stuff_crowds(
    row: Mapping[str, object], is_thing: Mapping[int, bool], json_path: Path
) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    segments = coco.json_rows(row, "segments_info", ("id", "category_id"), json_path)
    ids: dict[str, set[int]] = {"things": set(), "stuff": set(), "crowds": set()}
    for segment in segments:
        category = segment["category_id"]
        if category not in is_thing:
            raise DataError(f"{json_path}: segment {segment['id']} has the unknown {category=}")
        kind = "things" if is_thing[category] else "stuff"
        ids["crowds" if segment.get("iscrowd", 0) else kind].add(segment["id"])
    return frozenset(ids["things"]), frozenset(ids["stuff"]), frozenset(ids["crowds"])


def read_object_maps(dataset: str, split: str, folder: Path) -> tuple[ObjectMap, ...]:
    """List the images of a VOC split that have a PNG in SegmentationObject.

    Raises:
        DataError: none has one.
    """
    found = []
    for path, map_path in object_map_paths(dataset, split, folder):
        found.append(ObjectMap(path, map_path, *image_size(map_path.read_bytes(), str(map_path))))
    return tuple(found)


def object_map_paths(dataset: str, split: str, folder: Path) -> list[tuple[Path, Path]]:
    """Return (image, PNG) of the images that have one, sorted."""
    map_folder = folder / "SegmentationObject"
    maps = {path.stem: path.name for path in map_folder.glob("*.png")}
    paths = voc.image_paths(dataset, split, folder)
    found = [(path, map_folder / maps[path.stem]) for path in paths if path.stem in maps]
    if not found:
        raise DataError(
            f"{dataset}/{split} has boxes but no outlines of its objects: none of its images is in "
            f"{map_folder}. A box is no segment: unpack SegmentationObject there, or take another "
            "set, as coco2017/train"
        )
    return found


def panoptic_maps_folder(split: str, folder: Path) -> Path:
    """Return the folder of a COCO split's panoptic PNGs."""
    return coco.panoptic_json(split, folder).with_suffix("")


def _names(folder: Path) -> set[str]:
    return set(index_folder(folder).values())


def _read_png(path: Path) -> npt.NDArray[np.uint8]:
    """Palette images stay numbers."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); unpack it again") from error


def _require_size(pixels: npt.NDArray[np.uint8], item: SegmentMap) -> None:
    if pixels.shape[:2] != (item.height, item.width):
        raise DataError(
            f"{item.map_path} is {pixels.shape[:2]} (height, width) in pixels but the annotation "
            f"says {(item.height, item.width)}; unpack it again"
        )
