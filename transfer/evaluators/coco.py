"""COCO average precision and recall of boxes and masks, by pycocotools."""

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sslbench.datasets import DataError, Dataset

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
COCO_NAME = {"box": "bbox", "mask": "segm"}


def evaluate_coco(
    dataset: Dataset, rows: Sequence[Mapping[str, Any]], kinds: Sequence[Literal["box", "mask"]]
) -> dict[str, float | None]:
    """Return ``box_AP`` ... ``mask_ARl`` in percent; None where no object of that size exists.

    Args:
        rows: predictions in COCO's result format; none at all scores 0.
    """
    if dataset.annotation_path is None:
        raise DataError(
            f"{dataset.name}/{dataset.split} has no COCO annotation file to evaluate with"
        )
    image_ids = [record.image_id for record in dataset.records]
    found: dict[str, float | None] = {}
    for kind in kinds:
        values = _stats(dataset.annotation_path, image_ids, rows, COCO_NAME[kind])
        found |= {f"{kind}_{name}": value for name, value in zip(NAMES, values, strict=True)}
    return found


def _stats(
    annotation_path: Path, image_ids: Sequence[Any], rows: Sequence[Mapping[str, Any]], kind: str
) -> list[float | None]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its tables
        truth = COCO(str(annotation_path))
        found = _results(truth, rows, kind)
        evaluation = COCOeval(truth, found, kind)
        evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # -1 stands for "no object of this size"
    return [None if value < 0 else float(value) * 100 for value in evaluation.stats]


def _results(truth: Any, rows: Sequence[Mapping[str, Any]], kind: str) -> Any:
    """``loadRes``, which fails on an empty list; mask areas come from masks, not from boxes."""
    from pycocotools.coco import COCO

    if not rows:
        empty = COCO()
        empty.dataset = {k: truth.dataset[k] for k in ("images", "categories")} | {
            "annotations": []
        }
        empty.createIndex()
        return empty
    drop = "bbox" if kind == "segm" else "segmentation"
    return truth.loadRes([{k: copy.copy(v) for k, v in row.items() if k != drop} for row in rows])
