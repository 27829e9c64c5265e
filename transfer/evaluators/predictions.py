"""The predictions file: COCO's result format for every engine and data set."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslbench.datasets import Dataset, Record
from sslbench.files import atomic_path

if TYPE_CHECKING:
    from transfer.engines.base import Detections  # torch: not needed to evaluate


class PredictionError(ValueError):
    """A predictions file that does not fit the data."""


def rows_of(record: Record, detections: "Detections", dataset: Dataset) -> Iterator[dict[str, Any]]:
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
