"""Masks from annotations: every pixel belongs to a category or to the background."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pretrain.masks.cells import MAX_LABELS, majority
from pretrain.masks.segmentations import object_mask, require_segmentations
from pretrain.masks.store import MaskError, stored_size
from sslbench.datasets import (
    DataError,
    DataRoots,
    Dataset,
    Object,
    Record,
    content_id,
    images,
    only,
    read,
    spec_part,
)


@dataclass(frozen=True)
class Annotations:
    """Annotations of a split whose images are trained on; read when the first mask is asked for."""

    spec: str
    roots: DataRoots

    def __post_init__(self) -> None:
        """Refuse a name that asks for something else than categories."""
        if spec_part(self.spec) != "all":
            raise DataError(
                f"masks.source='ground_truth' paints the categories of instances, so that "
                f"{self.spec} cannot be had: give images={self.spec.partition(':')[0]!r}"
            )

    def content_id(self) -> str:
        """Identity of images and annotations."""
        return content_id(only("all", self.spec), self.roots)

    def require_any(self, names: Sequence[str]) -> None:
        """Refuse images of which none is annotated.

        Raises:
            DataError: their masks would be background and nothing else.
        """
        if self._records.keys().isdisjoint(names):
            raise DataError(
                f"{self.spec} annotates none of the {len(names)} images, as {names[0]}; it has "
                f"{next(iter(self._records))} and others: give the images of that split"
            )

    def labels(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """Category of each cell of an image, uint8 (h, w): 0 background, 1.. categories.

        Args:
            name: in the list of the split's images; an image without annotations is background.
            size: (height, width) in pixels.

        Raises:
            DataError: the annotations are broken, or of an image of another size.
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
        require_segmentations(data)
        base = images(self.spec, self.roots).base
        return {record.path.relative_to(base).as_posix(): record for record in data.records}


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
        painted_HW[object_mask(item, record)] = value(number, item)
    return painted_HW


def _require_masks(spec: str, data: Dataset) -> None:
    way_out = "masks.source='ground_truth' takes COCO's instances: images='coco2017/train'"
    if len(data.classes) >= MAX_LABELS:
        raise MaskError(
            f"{spec} has {len(data.classes)} categories, but a stored label is one byte; {way_out}"
        )
    if any(item.segmentation is None for record in data.records for item in record.objects):
        raise MaskError(f"{spec} has objects with a box but no mask; {way_out}")
