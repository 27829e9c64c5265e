"""The predictions file: COCO's result format for every engine and data set."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sslbench.datasets import Dataset, Record
from sslbench.files import atomic_path, read_json
from transfer.engines.base import Detections


class PredictionError(ValueError):
    """A predictions file that does not fit the data."""


def rows_of(record: Record, detections: Detections, dataset: Dataset) -> Iterator[dict[str, Any]]:
    """One row per detection: original ids, ``bbox`` as x, y, width, height, ``score``."""
    for index, box in enumerate(detections.boxes_N4.tolist()):
        row: dict[str, Any] = {
            "image_id": record.image_id,
            "category_id": dataset.category_ids[int(detections.classes_N[index])],
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": float(detections.scores_N[index]),
        }
        if detections.masks is not None:
            row["segmentation"] = detections.masks[index]
        yield row


def write_predictions(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one row per line, atomically and one after the other."""
    with atomic_path(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        before = "[\n"
        for row in rows:
            file.write(before + json.dumps(row))
            before = ",\n"
        file.write("[]\n" if before == "[\n" else "\n]\n")


def read_predictions(path: Path, dataset: Dataset) -> list[dict[str, Any]]:
    """Read rows and check that each belongs to the data.

    Raises:
        PredictionError: a row lacks a key, names an unknown image or category, or its score is not
        a number.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise PredictionError(f"{path} must hold a list of detections (COCO's result format)")
    images = {record.image_id for record in dataset.records}
    categories = set(dataset.category_ids)
    for number, row in enumerate(rows):
        missing = [k for k in ("image_id", "category_id", "bbox", "score") if k not in row]
        if missing:
            raise PredictionError(f"{path}: detection {number} has no {', '.join(missing)}")
        if row["image_id"] not in images:
            raise PredictionError(
                f"{path}: detection {number} is for image {row['image_id']!r}, which is not in "
                f"{dataset.name}/{dataset.split}"
            )
        if row["category_id"] not in categories:
            raise PredictionError(
                f"{path}: detection {number} has the unknown category_id {row['category_id']!r}"
            )
        if row["score"] != row["score"]:
            raise PredictionError(f"{path}: detection {number} has a score that is not a number")
    return rows
