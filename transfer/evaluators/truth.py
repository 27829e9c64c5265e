"""Annotations that an evaluator would misread are refused, by name."""

import mmap
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslbench.datasets import DataError, Dataset, Object, Record
from sslbench.datasets.lvis import FEDERATED, FREQUENCIES
from sslbench.datasets.outlines import LEAST_NUMBERS
from transfer.evaluators.reading import Kind


def check_truth(dataset: Dataset, kinds: Sequence[Kind]) -> None:
    """Check the objects that the reader found.

    Raises:
        DataError: no annotation file, ids that are not unique or not positive (0 stands for "no
            match" in the evaluators), or masks that are missing, too short or of another size.
    """
    path = dataset.annotation_path
    if path is None:
        raise DataError(
            f"{dataset.name}/{dataset.split} has no COCO annotation file to evaluate with"
        )
    seen: set[int] = set()
    for record in dataset.records:
        for item in record.objects:
            if item.annotation_id in seen:
                raise DataError(
                    f"{path}: the annotation id {item.annotation_id} occurs twice; all but one of "
                    "its objects would be lost: number the annotations anew"
                )
            if item.annotation_id < 1:
                raise DataError(
                    f"{path}: annotation id {item.annotation_id}; COCO's evaluator takes 0 for 'no "
                    "match', so ids must be numbers from 1 on: number the annotations anew"
                )
            seen.add(item.annotation_id)
            if "mask" in kinds:
                _check_mask(item, record, str(path))


def _check_mask(item: Object, record: Record, path: str) -> None:
    if not item.segmentation:
        raise DataError(
            f"{path}: annotation {item.annotation_id} has no segmentation, so masks cannot be "
            "evaluated; evaluate boxes alone (kind = 'faster_rcnn') or complete the annotations"
        )
    size = [record.height, record.width]
    if isinstance(item.segmentation, list):
        short = [part for part in item.segmentation if len(part) < LEAST_NUMBERS]
        if short:  # pycocotools takes four numbers for a box
            raise DataError(
                f"{path}: annotation {item.annotation_id} has the polygon {short[0]}, which has "
                "fewer than 3 points; take it out"
            )
    elif list(item.segmentation["size"]) != size:
        raise DataError(
            f"{path}: annotation {item.annotation_id} has a mask of size "
            f"{item.segmentation['size']}, its image {record.image_id} is {size} (height, width)"
        )


def check_annotations(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Check what the reader fills in itself: sizes decide what is small, medium and large.

    Raises:
        DataError: an annotation has no area.
    """
    for row in rows:
        if "area" not in row:
            raise DataError(f"{path}: annotation {row['id']} has no area, which COCO's sizes need")


def check_federation(dataset: Dataset, categories: Sequence[dict[str, Any]]) -> None:
    """Check what the rules of LVIS need.

    Images are looked at in the file's text: hotcoco does not tell an empty list from none.

    Raises:
        DataError: images lack what is known of absent categories, or categories their frequency.
    """
    path = dataset.annotation_path
    assert path is not None
    for key in FEDERATED:
        num_images = _count(path, f'"{key}"'.encode())
        if num_images != len(dataset.records):
            raise DataError(
                f"{path}: {num_images} of {len(dataset.records)} images have {key}: not an LVIS "
                "file; take metric = 'coco' for one that is annotated exhaustively"
            )
    for category in categories:
        if category.get("frequency") not in FREQUENCIES:
            raise DataError(
                f"{path}: category {category['id']} has the frequency "
                f"{category.get('frequency')!r}; LVIS has r, c and f"
            )


def _count(path: Path, word: bytes) -> int:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return sum(1 for _ in re.finditer(re.escape(word), text))
