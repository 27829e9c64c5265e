"""Segmentations of COCO's and LVIS's annotation files: polygons and run lengths, to pixels."""

import numpy as np
from numpy.typing import NDArray

from sslbench.datasets import DataError, Dataset, Object, Record


def require_segmentations(data: Dataset) -> None:
    """Refuse objects whose polygons enclose nothing; boxes alone are not looked at.

    Raises:
        DataError: it names the file, the image and the annotation.
    """
    for record in data.records:
        for item in record.objects:
            if item.segmentation == []:
                raise DataError(
                    f"{data.annotation_path}: the segmentation of annotation {item.annotation_id}, "
                    f"in {record.path.name}, has no polygon of three corners; mend this annotation "
                    "or remove it, or fetch the file again"
                )


def object_mask(item: Object, record: Record) -> NDArray[np.bool_]:
    """Pixels of one object, (H, W); its box where it has no segmentation."""
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
