"""COCO and LVIS scores by hotcoco, image by image: seconds, and memory for one batch of images.

It is the default because all numbers equal those of pycocotools and lvis, on the published
reference files and on random cases with crowds, ties and both limits of detections;
docs/evaluation.md has the figures. That holds for whole images, for masks without their boxes (it
would take areas from them), and for LVIS without objects and detections of area 0, without crowds
and with ``ignore`` heeded.
"""

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import islice
from typing import Any

import numpy as np

from sslbench.datasets import DataError, Dataset
from transfer.evaluators.reading import Kind, Row
from transfer.evaluators.rle import mask_sizes
from transfer.evaluators.scores import (
    IOU_TYPE,
    MAX_DETECTIONS,
    Family,
    Scores,
    build_scores,
    without,
)
from transfer.evaluators.truth import check_annotations, check_federation

IMAGES_AT_ONCE = 256


def name(family: Family) -> str:
    """Package and version."""
    return f"hotcoco {version('hotcoco')}"


def score(
    family: Family, dataset: Dataset, batches: Iterable[list[Row]], kinds: Sequence[Kind]
) -> dict[Kind, Scores]:
    """Score predictions in COCO's result format.

    Args:
        batches: rows, each batch with all rows of its images.
    """
    matcher = _Matcher(family, dataset, kinds)
    left = dict.fromkeys(record.image_id for record in dataset.records)
    for rows in batches:
        of_image: dict[Any, list[Row]] = defaultdict(list)
        for row in rows:
            of_image[row["image_id"]].append(row)
        for image_id in of_image:
            del left[image_id]
        matcher.add(of_image)
    without_rows = iter(left)
    while some := list(islice(without_rows, IMAGES_AT_ONCE)):
        matcher.add({image_id: [] for image_id in some})
    return matcher.scores()


class _Matcher:
    """Compares the images handed to it and remembers of each only what matched."""

    def __init__(self, family: Family, dataset: Dataset, kinds: Sequence[Kind]) -> None:
        from hotcoco import COCO, StreamingEval

        self.family, self.path = family, str(dataset.annotation_path)
        try:
            self.truth = COCO(self.path)
        except ValueError as error:  # it is stricter than Python's reader: of marks, signs, types
            raise DataError(
                f"hotcoco cannot read {self.path}: {error}; mend the file, or take the reference "
                "(--evaluator reference, or evaluator = in the task)"
            ) from None
        categories = self.truth.load_cats(self.truth.get_cat_ids())
        if family == "lvis":
            check_federation(dataset, categories)
        self.streams = {
            kind: StreamingEval(categories, IOU_TYPE[kind], lvis_style=family == "lvis")
            for kind in kinds
        }

    def add(self, of_image: dict[Any, list[Row]]) -> None:
        """Compare all rows of some images."""
        ids = list(of_image)
        if not ids:  # which hotcoco takes for all images
            return
        images = self.truth.load_imgs(ids)
        annotations = self.truth.load_anns(self.truth.get_ann_ids(img_ids=ids))
        check_annotations(annotations, self.path)
        if self.family == "lvis":
            annotations = [_as_lvis_reads(item) for item in annotations if item["area"] > 0]
            of_image = {image_id: best_of_image(own) for image_id, own in of_image.items()}
        rows = [row for own in of_image.values() for row in own]
        for kind, stream in self.streams.items():
            stream.update(images, annotations, self._detections(rows, kind))

    def _detections(self, rows: list[Row], kind: Kind) -> Any:
        """Rows in the form that hotcoco reads fastest; a box would decide the area of a mask."""
        if kind == "box":
            table = [
                (r["image_id"], *map(float, r["bbox"]), r["score"], r["category_id"]) for r in rows
            ]
            array_N7 = np.array(table, np.float64).reshape(-1, 7)
            areas_N = array_N7[:, 3] * array_N7[:, 4]  # lvis drops what has none
            return array_N7[areas_N > 0] if self.family == "lvis" else array_N7
        if self.family == "lvis":
            pixels_N = mask_sizes([row["segmentation"]["counts"] for row in rows]).areas_N
            rows = [row for row, pixels in zip(rows, pixels_N, strict=True) if pixels > 0]
        return [without(row, "bbox") for row in rows]

    def scores(self) -> dict[Kind, Scores]:
        """Summarise over all images."""
        found: dict[Kind, Scores] = {}
        for kind, stream in self.streams.items():
            evaluation = stream.finalize()
            with contextlib.redirect_stdout(io.StringIO()):  # it prints its table
                evaluation.accumulate()
                evaluation.summarize()
            assert evaluation.eval is not None, "it has just accumulated"
            precision_TRK = evaluation.eval["precision"][:, :, :, 0, -1]
            found[kind] = build_scores(self.family, evaluation.stats, precision_TRK)
        return found


def _as_lvis_reads(annotation: dict[str, Any]) -> dict[str, Any]:
    """lvis knows no crowds; what is to be ignored gets an area that lies in no range of sizes."""
    ignored = {"area": -1.0} if annotation.get("ignore") else {}
    return annotation | {"iscrowd": 0} | ignored


def best_of_image(rows: list[Row]) -> list[Row]:
    """The rows of one image that LVIS counts; of equal scores the first in the file."""
    if len(rows) <= MAX_DETECTIONS:
        return rows
    return sorted(rows, key=lambda row: row["score"], reverse=True)[:MAX_DETECTIONS]
