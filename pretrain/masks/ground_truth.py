"""Masks from annotations: every pixel belongs to a category or to the background."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pretrain.masks.cells import MAX_LABELS, majority
from pretrain.masks.store import MaskError, stored_size
from sslbench.datasets import DataError, DataRoots, Dataset, Object, Record, content_id, only, read


@dataclass(frozen=True)
class Annotations:
    """Annotations of a split whose images are trained on; read when the first mask is asked for."""

    spec: str
    roots: DataRoots

    def content_id(self) -> str:
        """Identity of images and annotations."""
        return content_id(only("all", self.spec), self.roots)

    def labels(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """Category of each cell of an image, uint8 (h, w): 0 background, 1.. categories.

        Args:
            name: of the image; one without annotations is background.
            size: (height, width) in pixels.

        Raises:
            DataError: the annotations are of an image of another size.
        """
        record = self._records.get(name)
        if record is None:
            return np.zeros(stored_size(*size), np.uint8)
        if (record.height, record.width) != size:
            raise DataError(
                f"{self.spec}: {name} is {size} (height, width) in pixels but its annotations are "
                f"of {(record.height, record.width)}; complete the data set"
            )
        return majority(category_map(record)).astype(np.uint8)

    @cached_property
    def _records(self) -> dict[str, Record]:
        data = read(self.spec, self.roots)
        _require_masks(self.spec, data)
        return {record.path.name: record for record in data.records}


def category_map(record: Record) -> NDArray[np.int32]:
    """Paint an image's objects, large ones first: 0 background, else category + 1, crowds too."""
    return paint(record, lambda _, item: item.category + 1)


def paint(record: Record, value: Callable[[int, Object], int]) -> NDArray[np.int32]:
    """Paint an image's objects over a background of 0, large ones first, (H, W).

    Args:
        value: of an object, given its place in the order of painting, which counts from 1.
    """
    painted_HW = np.zeros((record.height, record.width), np.int32)
    for number, item in enumerate(sorted(record.objects, key=lambda o: -o.area), start=1):
        painted_HW[_object_mask(item, record)] = value(number, item)
    return painted_HW


def _object_mask(item: Object, record: Record) -> NDArray[np.bool_]:
    """Pixels of one object; its box where it has no segmentation."""
    from pycocotools import mask as coco_mask

    size = (record.height, record.width)
    segmentation = item.segmentation
    if segmentation is None:
        inside = np.zeros(size, bool)
        x0, y0, x1, y1 = (round(v) for v in item.box)
        inside[max(y0, 0) : y1, max(x0, 0) : x1] = True
        return inside
    if isinstance(segmentation, list):
        code = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        code = coco_mask.frPyObjects(segmentation, *size)
    else:
        code = segmentation
    decoded: NDArray[np.bool_] = coco_mask.decode(code).astype(bool)
    return decoded


def _require_masks(spec: str, data: Dataset) -> None:
    way_out = "masks.source='ground_truth' takes COCO's instances: images='coco2017/train'"
    if len(data.classes) >= MAX_LABELS:
        raise MaskError(
            f"{spec} has {len(data.classes)} categories, but a stored label is one byte; {way_out}"
        )
    if any(item.segmentation is None for record in data.records for item in record.objects):
        raise MaskError(f"{spec} has objects with a box but no mask; {way_out}")
