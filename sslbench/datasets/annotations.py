"""Rows of a COCO or LVIS annotation list as ``Object``s: what is refused, what is only counted.

Real COCO has boxes of zero height, boxes that reach over the edge and a few outlines of less than
three points. They are read as Detectron2 reads them and counted; anything else that cannot be is
damage and refused.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sslbench.datasets.outlines import LEAST_NUMBERS, fault_of
from sslbench.datasets.records import Box, Object
from sslbench.datasets.roots import DataError

EDGE_PIXELS = 1.0  # polygons may follow the outer edge of the last pixel
MEND = "mend this annotation or remove it, or fetch the file again"
Outline = list[list[float]] | dict[str, Any] | None


class Frame(NamedTuple):
    """An image that annotations belong to."""

    path: Path
    height: int
    width: int


@dataclass
class Tally:
    """Odd but legitimate annotations of one file or split."""

    empty_boxes: int = 0
    over_the_edge: int = 0
    short_polygons: int = 0
    without_outline: int = 0

    def lines(self, where: str) -> tuple[str, ...]:
        """One line for people, or none."""
        said = {
            "boxes of zero area (no training)": self.empty_boxes,
            "boxes over the image's edge (cut there)": self.over_the_edge,
            "polygons of fewer than 3 points (left out)": self.short_polygons,
            "objects without any other polygon (no training)": self.without_outline,
        }
        listed = ", ".join(f"{count} {what}" for what, count in said.items() if count)
        return (f"{where} has {listed}",) if listed else ()

    def count_box(self, box: Box, height: int, width: int) -> bool:
        """Count an odd box; return whether it has any pixel in its image, as it must."""
        left, top, right, bottom = box
        if right <= left or bottom <= top:
            self.empty_boxes += 1
            return True
        if left >= width or top >= height or right <= 0 or bottom <= 0:
            return False
        far = max(-left, -top, right - width, bottom - height)
        self.over_the_edge += far > EDGE_PIXELS
        return True


def objects_by_image(
    rows: Iterable[Mapping[str, Any]],
    frames: Mapping[int, Frame],
    index_of: Mapping[int, int],
    json_path: Path,
) -> tuple[dict[int, list[Object]], Tally]:
    """Check and convert all annotations of a file.

    Args:
        frames: by image id.
        index_of: category id -> index of the class.

    Raises:
        DataError: a bad annotation; names the file, the id, the value and the way out.
    """
    objects: dict[int, list[Object]] = defaultdict(list)
    tally = Tally()
    seen: set[int] = set()
    for row in rows:
        number = row["id"]
        if type(number) is not int or number in seen:
            why = "is used twice" if type(number) is int else "is no whole number"
            raise DataError(
                f"{json_path}: the annotation id {number!r} {why}; give each annotation its own"
            )
        seen.add(number)
        _require_known(row, "image_id", frames, json_path)
        _require_known(row, "category_id", index_of, json_path)
        frame = frames[row["image_id"]]
        objects[row["image_id"]].append(_object(row, index_of, frame, tally, json_path))
    return objects, tally


def _require_known(
    row: Mapping[str, Any], key: str, known: Mapping[int, object], json_path: Path
) -> None:
    value = row[key]
    if type(value) is not int or value not in known:
        where = "images" if key == "image_id" else "categories"
        raise DataError(
            f"{json_path}: annotation {row['id']} has the unknown {key} {value!r}; "
            f"add it to the file's {where}, or drop the annotation"
        )


def _object(
    row: Mapping[str, Any],
    index_of: Mapping[int, int],
    frame: Frame,
    tally: Tally,
    json_path: Path,
) -> Object:
    box = _box(row, json_path)
    if not tally.count_box(box, frame.height, frame.width):
        size = f"{frame.width} x {frame.height} pixels"
        raise _bad(row, "bbox", f"lies wholly outside {frame.path.name} of {size}", json_path)
    area = row.get("area", (box[2] - box[0]) * (box[3] - box[1]))
    if type(area) not in (int, float) or not 0 <= area < math.inf:
        raise _bad(row, "area", "is no number of pixels", json_path)
    crowd = row.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise _bad(row, "iscrowd", "is neither 0 nor 1", json_path)
    outline = _outline(row, frame, tally, json_path)
    category = index_of[row["category_id"]]
    return Object(category, box, area, bool(crowd), False, outline, row["id"])


def _box(row: Mapping[str, Any], json_path: Path) -> Box:
    try:
        left, top, width, height = row["bbox"]
        possible = math.isfinite(left + top + width + height) and width >= 0 and height >= 0
    except (TypeError, ValueError, OverflowError):
        possible = False
    if not possible:
        raise _bad(row, "bbox", "is not x, y, width, height in pixels", json_path)
    return left, top, left + width, top + height


def _bad(row: Mapping[str, Any], key: str, why: str, json_path: Path) -> DataError:
    return DataError(
        f"{json_path}: annotation {row['id']} has the bad {key} {row[key]!r}: it {why}; {MEND}"
    )


def _outline(row: Mapping[str, Any], frame: Frame, tally: Tally, json_path: Path) -> Outline:
    """Return the segmentation without polygons that enclose nothing; empty if that leaves none."""
    given = row.get("segmentation")
    if given is None:
        return None
    fault = fault_of(given, frame.height, frame.width)
    if fault:
        raise DataError(
            f"{json_path}: the segmentation of annotation {row['id']}, in {frame.path.name}, "
            f"{fault}; {MEND}"
        )
    if isinstance(given, dict) or all(len(polygon) >= LEAST_NUMBERS for polygon in given):
        tally.without_outline += not given
        outline: Outline = given
        return outline
    kept = [polygon for polygon in given if len(polygon) >= LEAST_NUMBERS]
    tally.short_polygons += len(given) - len(kept)
    tally.without_outline += not kept
    return kept
