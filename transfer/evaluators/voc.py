"""PASCAL VOC average precision, over IoU 0.50:0.05:0.95, as Detectron2 computes it.

Boxes are 1-based inclusive pixels; a detection may match only the object of its class it overlaps
most; `difficult` objects neither count nor punish. Coordinates are rounded to one decimal and
scores to three, because Detectron2 scores the text files that it writes.

Shape letters: D detections of one class (best first), G objects of one class, P pairs of them in
one image.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sslbench.datasets import Dataset

THRESHOLDS = tuple(t / 100 for t in range(50, 100, 5))


@dataclass(frozen=True)
class VOCResult:
    """Percent. A class without an object that counts is not evaluated and not averaged."""

    metrics: dict[str, float]  # AP, AP50, AP75
    per_class: dict[str, float]  # AP of each evaluated class
    missing: tuple[str, ...]  # classes that were not evaluated


def evaluate_voc(
    dataset: Dataset, rows: Sequence[Mapping[str, Any]], metric: Literal["voc07", "voc12"]
) -> VOCResult:
    """Score predictions in COCO's result format.

    Args:
        metric: 11-point interpolation of 2007, or the area under the curve.
    """
    by_category = defaultdict(list)
    for row in rows:
        by_category[row["category_id"]].append(row)
    table, missing = {}, []
    for category, (name, category_id) in enumerate(
        zip(dataset.classes, dataset.category_ids, strict=True)
    ):
        objects = _objects(dataset, category)
        if not (~objects.difficult_G).any():
            missing.append(name)
            continue
        detections = _detections(by_category[category_id])
        table[name] = _average_precisions(detections, objects, metric) * 100
    if not table:
        raise ValueError(f"{dataset.name}/{dataset.split} has no object to evaluate")
    mean = np.mean(list(table.values()), axis=0)
    metrics = {"AP": mean.mean(), "AP50": mean[0], "AP75": mean[THRESHOLDS.index(0.75)]}
    return VOCResult(
        {name: float(value) for name, value in metrics.items()},
        {name: float(values.mean()) for name, values in table.items()},
        tuple(missing),
    )


@dataclass(frozen=True)
class _Objects:
    boxes_G4: np.ndarray
    difficult_G: np.ndarray
    span: dict[Any, tuple[int, int]]  # image id -> first, end


@dataclass(frozen=True)
class _Detections:
    boxes_D4: np.ndarray
    image_ids: list[Any]


def _objects(dataset: Dataset, category: int) -> _Objects:
    boxes: list[tuple[float, ...]] = []
    difficult: list[bool] = []
    span = {}
    for record in dataset.records:
        first = len(boxes)
        own = [item for item in record.objects if item.category == category]
        boxes += [(o.box[0] + 1, o.box[1] + 1, o.box[2], o.box[3]) for o in own]
        difficult += [o.difficult for o in own]
        span[record.image_id] = (first, len(boxes))
    return _Objects(np.array(boxes, float).reshape(-1, 4), np.array(difficult, bool), span)


def _detections(rows: Sequence[Mapping[str, Any]]) -> _Detections:
    scores_D = np.array([float(f"{row['score']:.3f}") for row in rows])
    boxes_D4 = np.array([_text_box(row["bbox"]) for row in rows], float).reshape(-1, 4)
    # ties keep the order of the file; Detectron2 leaves them to an unstable sort
    order = np.argsort(-scores_D, kind="stable")
    return _Detections(boxes_D4[order], [rows[i]["image_id"] for i in order])


def _text_box(bbox: Sequence[float]) -> tuple[float, ...]:
    """x, y, width, height -> 1-based inclusive corners in float32, as written with one decimal."""
    x, y, width, height = bbox
    one = np.float32(1)
    corners = (
        np.float32(x) + one,
        np.float32(y) + one,
        np.float32(x + width),
        np.float32(y + height),
    )
    return tuple(float(f"{corner:.1f}") for corner in corners)


def _average_precisions(detections: _Detections, objects: _Objects, metric: str) -> np.ndarray:
    """AP at each threshold."""
    overlap_D, match_D = _best_matches(detections, objects)
    num_objects = int((~objects.difficult_G).sum())
    interpolate = _eleven_points if metric == "voc07" else _area
    found = []
    for threshold in THRESHOLDS:
        hit_D = overlap_D > threshold
        ignored_D = hit_D & objects.difficult_G[match_D]
        candidate = np.flatnonzero(hit_D & ~ignored_D)
        true_D = np.zeros(len(hit_D), bool)
        # the best-scored detection of an object is right, every further one is a duplicate
        true_D[candidate[np.unique(match_D[candidate], return_index=True)[1]]] = True
        false_D = ~true_D & ~ignored_D
        true_sum, false_sum = np.cumsum(true_D), np.cumsum(false_D)
        recall_D = true_sum / num_objects
        precision_D = true_sum / np.maximum(true_sum + false_sum, np.finfo(np.float64).eps)
        found.append(interpolate(recall_D, precision_D))
    return np.array(found)


def _best_matches(detections: _Detections, objects: _Objects) -> tuple[np.ndarray, np.ndarray]:
    """Largest IoU of each detection in its image, and with which object; -inf and 0 if none."""
    spans = np.array([objects.span[i] for i in detections.image_ids], int).reshape(-1, 2)
    count_D = spans[:, 1] - spans[:, 0]
    detection_P = np.repeat(np.arange(len(count_D)), count_D)
    first_P = np.repeat(np.cumsum(count_D) - count_D, count_D)
    object_P = np.repeat(spans[:, 0], count_D) + np.arange(len(detection_P)) - first_P
    overlap_P = _iou(detections.boxes_D4[detection_P], objects.boxes_G4[object_P])
    overlap_D = np.full(len(count_D), -np.inf)
    np.maximum.at(overlap_D, detection_P, overlap_P)
    match_D = np.zeros(len(count_D), int)
    best_P = np.flatnonzero(overlap_P == overlap_D[detection_P])[::-1]
    match_D[detection_P[best_P]] = object_P[best_P]  # reversed: among equals the first object wins
    return overlap_D, match_D


def _iou(a_P4: np.ndarray, b_P4: np.ndarray) -> np.ndarray:
    """Overlap of inclusive pixel boxes."""
    low, high = np.maximum(a_P4[:, :2], b_P4[:, :2]), np.minimum(a_P4[:, 2:], b_P4[:, 2:])
    common = np.maximum(high - low + 1, 0).prod(axis=1)
    area_a, area_b = ((box[:, 2:] - box[:, :2] + 1).prod(axis=1) for box in (a_P4, b_P4))
    return common / (area_a + area_b - common)


def _envelope(precision_D: np.ndarray) -> np.ndarray:
    """Best precision at this or any higher recall."""
    return np.maximum.accumulate(precision_D[::-1])[::-1]


def _eleven_points(recall_D: np.ndarray, precision_D: np.ndarray) -> float:
    envelope = np.append(_envelope(precision_D), 0.0)
    points = np.searchsorted(recall_D, np.arange(0.0, 1.1, 0.1), side="left")
    return float(envelope[points].sum() / 11)


def _area(recall_D: np.ndarray, precision_D: np.ndarray) -> float:
    steps = np.diff(recall_D, prepend=0.0)
    return float((steps * _envelope(precision_D)).sum())
