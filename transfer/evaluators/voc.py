"""PASCAL VOC average precision, over IoU 0.50:0.05:0.95, as Detectron2 computes it.

Boxes are 1-based inclusive pixels; a detection may match only the object of its class it overlaps
most; `difficult` objects neither count nor punish. Coordinates are rounded to one decimal and
scores to three, because Detectron2 scores the text files that it writes.

Shape letters: D detections of one class (best first), G objects of one class, P pairs of them in
one image.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sslbench.datasets import Dataset

THRESHOLDS = tuple(t / 100 for t in range(50, 100, 5))


# The task's own definition has the plain names AP, AP50, AP75; the other one's end in this.
SUFFIX = {"voc07": "_11point", "voc12": "_area"}

Definition = Literal["voc07", "voc12"]
Detection = tuple[Any, float, float, float, float, float]  # image id, score, x, y, width, height


@dataclass(frozen=True)
class VOCResult:
    """Percent. A class without an object that counts is not evaluated and not averaged."""

    metrics: dict[str, float]  # AP, AP50, AP75, and those by the other definition
    per_class: dict[str, dict[str, float | None]]  # the same of each class
    missing: tuple[str, ...]  # classes that were not evaluated


def evaluate_voc(
    dataset: Dataset, rows: Iterable[Mapping[str, Any]], metric: Definition
) -> VOCResult:
    """Score predictions in COCO's result format.

    Args:
        metric: 11-point interpolation of 2007, or the area under the curve.
    """
    by_category: dict[int, list[Detection]] = defaultdict(list)
    for row in rows:
        x, y, width, height = row["bbox"]
        own = (row["image_id"], row["score"], x, y, width, height)
        by_category[row["category_id"]].append(own)
    table: dict[str, dict[str, float]] = {}
    for category, (name, category_id) in enumerate(
        zip(dataset.classes, dataset.category_ids, strict=True)
    ):
        objects = _objects(dataset, category)
        if (~objects.difficult_G).any():
            detections = _detections(by_category.pop(category_id, []))
            table[name] = _class_metrics(detections, objects, metric)
    if not table:
        raise ValueError(f"{dataset.name}/{dataset.split} has no object to evaluate")
    names = list(next(iter(table.values())))
    metrics = {name: float(np.mean([own[name] for own in table.values()])) for name in names}
    blank = dict.fromkeys(names)
    per_class = {name: {**blank, **table.get(name, {})} for name in dataset.classes}
    missing = tuple(name for name in dataset.classes if name not in table)
    return VOCResult(metrics, per_class, missing)


def _class_metrics(
    detections: "_Detections", objects: "_Objects", metric: Definition
) -> dict[str, float]:
    """AP, AP50 and AP75 by both definitions, the task's own first."""
    found = _average_precisions(detections, objects)
    values: dict[str, Any] = {}
    for definition in sorted(found, key=lambda name: name != metric):
        ap = found[definition] * 100
        end = "" if definition == metric else SUFFIX[definition]
        values |= {f"AP{end}": ap.mean(), f"AP50{end}": ap[0]}
        values[f"AP75{end}"] = ap[THRESHOLDS.index(0.75)]
    return {name: float(value) for name, value in values.items()}


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


def _detections(found: Sequence[Detection]) -> _Detections:
    scores_D = np.array([float(f"{score:.3f}") for _, score, *_ in found])
    boxes_D4 = np.array([_text_box(box) for _, _, *box in found], float).reshape(-1, 4)
    # ties keep the order of the file; Detectron2 leaves them to an unstable sort
    order = np.argsort(-scores_D, kind="stable")
    return _Detections(boxes_D4[order], [found[i][0] for i in order])


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


def _average_precisions(detections: _Detections, objects: _Objects) -> dict[Definition, np.ndarray]:
    """AP at each threshold, by both definitions."""
    overlap_D, match_D = _best_matches(detections, objects)
    curves = [_curve(overlap_D > t, match_D, objects.difficult_G) for t in THRESHOLDS]
    return {
        "voc07": np.array([_eleven_points(*curve) for curve in curves]),
        "voc12": np.array([_area(*curve) for curve in curves]),
    }


def _curve(
    hit_D: np.ndarray, match_D: np.ndarray, difficult_G: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection."""
    ignored_D = hit_D & difficult_G[match_D]
    candidate = np.flatnonzero(hit_D & ~ignored_D)
    true_D = np.zeros(len(hit_D), bool)
    # the best-scored detection of an object is right, every further one is a duplicate
    true_D[candidate[np.unique(match_D[candidate], return_index=True)[1]]] = True
    true_sum, false_sum = np.cumsum(true_D), np.cumsum(~true_D & ~ignored_D)
    recall_D = true_sum / int((~difficult_G).sum())
    return recall_D, true_sum / np.maximum(true_sum + false_sum, np.finfo(np.float64).eps)


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
    overlap: np.ndarray = common / (area_a + area_b - common)
    return overlap


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
