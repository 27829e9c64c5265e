"""What a reader returns: images with their objects, the same for every annotation format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# Pixels, 0-based, x1 and y1 exclusive.
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Object:
    """One annotated object.

    Args:
        category: 0-based index into the data set's classes.
        area: pixels of the mask, or of the box where there is none.
        segmentation: list of polygons ``[x, y, x, y, ...]``, an RLE dict, or None.
    """

    category: int
    box: Box
    area: float
    crowd: bool
    difficult: bool
    segmentation: list[list[float]] | dict[str, Any] | None
    annotation_id: int


@dataclass(frozen=True, slots=True)
class Record:
    """One image; ``image_id`` is the number of COCO's JSON or the file stem of VOC."""

    image_id: int | str
    path: Path
    height: int
    width: int
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    Args:
        category_ids: the ids in the annotation file, ascending, one per class; 1, 2, ... for VOC.
        records: sorted by image id.
        annotation_path: the JSON, or None for VOC's one XML per image.
        notes: lines for people about odd but legitimate annotations.
        unofficial: how the split differs from the released one, if it does; one line a split.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: tuple[Record, ...]
    annotation_path: Path | None
    notes: tuple[str, ...] = ()
    unofficial: tuple[str, ...] = ()


class ImageLabels(NamedTuple):
    """Image-level labels, row i belonging to paths[i], sorted as ``read`` sorts its records.

    Args:
        matrix: int8 (num_images, num_classes): 1 present, -1 absent, 0 only difficult instances.
    """

    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    matrix: npt.NDArray[np.int8]
