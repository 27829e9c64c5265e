"""Segmentations of COCO's and LVIS's annotation files: polygons and run lengths, to pixels.

All are checked when the annotations are read, since pycocotools fails on some malformed ones and
makes pixels of others.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslbench.datasets import DataError, Dataset, Object, Record

LEAST_NUMBERS = 6  # of a polygon that encloses something: three corners


def require_segmentations(data: Dataset) -> None:
    """Refuse annotations whose segmentations mean no pixels; boxes alone are not looked at.

    Raises:
        DataError: it names the file, the image and the annotation.
    """
    for record in data.records:
        for item in record.objects:
            fault = "" if item.segmentation is None else _fault(item.segmentation, record)
            if fault:
                raise DataError(
                    f"{data.annotation_path}: the segmentation of annotation {item.annotation_id}, "
                    f"in {record.path.name}, {fault}; mend this annotation or remove it, or fetch "
                    "the file again"
                )


def object_mask(item: Object, record: Record) -> NDArray[np.bool_]:
    """Pixels of one object, (H, W); its box where it has no segmentation."""
    from pycocotools import mask as coco_mask

    size = (record.height, record.width)
    segmentation = item.segmentation
    if segmentation is None:
        inside = np.zeros(size, bool)
        x0, y0, x1, y1 = (round(v) for v in item.box)
        inside[max(y0, 0) : y1, max(x0, 0) : x1] = True
        return inside
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= LEAST_NUMBERS]
        code = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    elif isinstance(segmentation["counts"], list):
        code = coco_mask.frPyObjects(segmentation, *size)
    else:
        code = segmentation
    decoded: NDArray[np.bool_] = coco_mask.decode(code).astype(bool)
    return decoded


def _fault(segmentation: Any, record: Record) -> str:
    """What is wrong with it, or nothing."""
    if isinstance(segmentation, list):
        return _fault_of_polygons(segmentation)
    if isinstance(segmentation, dict):
        return _fault_of_runs(segmentation, record.height, record.width)
    return f"is {str(segmentation)[:40]!r} instead of polygons or run lengths"


def _fault_of_polygons(polygons: Sequence[Any]) -> str:
    for polygon in polygons:
        try:
            fits = isinstance(polygon, list) and all(map(math.isfinite, polygon))
        except TypeError:
            fits = False
        if not fits or len(polygon) % 2:
            return f"has the polygon {str(polygon)[:40]}, which is no list x, y, x, y, ..."
    if not any(len(polygon) >= LEAST_NUMBERS for polygon in polygons):
        return "has no polygon of three corners"
    return ""


def _fault_of_runs(code: dict[str, Any], height: int, width: int) -> str:
    if code.get("size") != [height, width]:
        return f"is of size {code.get('size')} but the image of {[height, width]} (height, width)"
    counts = code.get("counts")
    if isinstance(counts, str | bytes):
        counts = _run_lengths(counts)
    whole = isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts)
    if not whole or sum(counts) != height * width:
        return f"has run lengths that do not add up to its {height}x{width} pixels"
    return ""


def _run_lengths(code: str | bytes) -> list[int] | None:
    """Undo COCO's compression of run lengths; None where it is no such code.

    A number has five bits a character, the lowest first, as a signed one; bit 32 says that more
    follow. From the fourth on it is the difference to the number two before.
    """
    runs: list[int] = []
    number = shift = 0
    for character in code.encode("latin-1", "replace") if isinstance(code, str) else code:
        bits = character - 48
        if not 0 <= bits < 64:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (bits & 16) << (shift - 4)  # the sign
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return None if shift else runs
