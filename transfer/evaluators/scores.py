"""The summary numbers of COCO and LVIS, the same from every backend."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Family = Literal["coco", "lvis"]

NAMES: dict[Family, tuple[str, ...]] = {
    "coco": (
        *("AP", "AP50", "AP75", "APs", "APm", "APl"),
        *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),  # by size: up to 100 detections
    ),
    "lvis": (
        *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
        *("AR300", "ARs", "ARm", "ARl"),  # all up to 300 detections
    ),
}
IOU_TYPE = {"box": "bbox", "mask": "segm"}  # the packages' name of each kind
MAX_DETECTIONS = 300  # of an LVIS image, over all its categories
PER_CLASS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}  # of 0.50:0.05:0.95


@dataclass(frozen=True)
class Scores:
    """Percent; None where no object of that kind exists, which is not zero."""

    summary: dict[str, float | None]  # in the order of NAMES
    classes: tuple[dict[str, float | None], ...]  # AP, AP50, AP75 of each class, by category id


def build_scores(
    family: Family, summary: Iterable[float], precision_TRK: npt.NDArray[np.float64]
) -> Scores:
    """Turn fractions, in which -1 stands for "nothing to evaluate", into percent.

    Args:
        precision_TRK: at 10 overlaps, 101 recalls, for each class; all sizes, most detections.
    """
    values = dict(zip(NAMES[family], map(_percent, map(float, summary)), strict=True))
    per_class: list[dict[str, float | None]] = []
    for index in range(precision_TRK.shape[2]):
        own_TR = precision_TRK[:, :, index]
        per_class.append({name: _mean(own_TR[part]) for name, part in PER_CLASS.items()})
    return Scores(values, tuple(per_class))


def _percent(value: float) -> float | None:
    return None if value < 0 else value * 100


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    counted = values[values > -1]
    return float(counted.mean()) * 100 if counted.size else None


def without(row: dict[str, Any], field: str) -> dict[str, Any]:
    """A row without one of its outlines: the packages take areas from a box where there is one."""
    return {key: value for key, value in row.items() if key != field}
