"""Segmentations of annotation files, polygons and run lengths: what is wrong with one.

All are checked when the annotations are read, since pycocotools fails on some malformed ones and
makes pixels of others.
"""

import math
from collections.abc import Sequence
from typing import Any

LEAST_NUMBERS = 6  # of a polygon that encloses something: three corners


def fault_of(segmentation: Any, height: int, width: int) -> str:
    """Say what is wrong with a segmentation of an image of this size; nothing where it is sound."""
    if isinstance(segmentation, list):
        return _fault_of_polygons(segmentation)
    if isinstance(segmentation, dict):
        return _fault_of_runs(segmentation, height, width)
    return f"is {str(segmentation)[:40]!r} instead of polygons or run lengths"


def _fault_of_polygons(polygons: Sequence[Any]) -> str:
    for polygon in polygons:
        try:
            # a sum says as much of its numbers as looking at each, in a tenth of the time
            fits = isinstance(polygon, list) and math.isfinite(sum(polygon))
        except (TypeError, OverflowError):
            fits = False
        if not fits or len(polygon) % 2:
            return f"has the polygon {str(polygon)[:40]}, which is no list x, y, x, y, ..."
    return ""


def _fault_of_runs(code: dict[str, Any], height: int, width: int) -> str:
    if code.get("size") != [height, width]:
        return f"is of size {code.get('size')} but the image of {[height, width]} (height, width)"
    counts = code.get("counts")
    if isinstance(counts, str | bytes):
        counts = _run_lengths(counts)
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        counts = []
    if sum(counts) != height * width:
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
