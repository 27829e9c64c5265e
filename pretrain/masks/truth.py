"""Annotated images as maps of regions, whatever the annotation: what masks are measured against."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pretrain.masks.ground_truth import paint
from pretrain.masks.segmentations import require_segmentations
from sslbench.datasets import (
    IGNORED,
    DataError,
    DataRoots,
    ImageList,
    Record,
    Regions,
    SegmentMap,
    images,
    images_id,
    layout_of,
    only,
    parse_spec,
    read,
    segment_maps,
    spec_part,
)


def annotation_spec(spec: str) -> str:
    """Name what is read of a labelled split: of VOC its object PNGs, for a box is no segment."""
    is_voc = layout_of(parse_spec(spec)[0]).family == "voc"
    return only("segments", spec) if is_voc else spec


def instance_map(record: Record | SegmentMap) -> NDArray[np.int32]:
    """Number of the region of each pixel: 0 background, 1.. objects, -1 crowds.

    Objects are painted small over large. A panoptic PNG's regions are things and stuff, from 1 on.
    """
    return regions(record).numbers_HW


def regions(record: Record | SegmentMap) -> Regions:
    """Read or paint an image's annotated regions; outlines are painted small over large."""
    if not isinstance(record, Record):
        return record.regions()
    numbers_HW = paint(record, lambda number, item: IGNORED if item.crowd else number)
    return Regions(numbers_HW, frozenset(range(1, len(record.objects) + 1)))


@dataclass(frozen=True)
class AnnotatedImages:
    """The images of a list that are annotated, with their places in the list."""

    spec: str
    images: ImageList
    images_id: str
    records: tuple[tuple[int, Record | SegmentMap], ...]  # (index in ``images``, annotation)

    @classmethod
    def load(cls, spec: str, roots: DataRoots, masks_of: str = "") -> Self:
        """Match a labelled split to the images that masks were made of.

        Args:
            spec: ``coco2017/val`` for instances, ``coco2017/val:segments`` for panoptic PNGs,
                ``voc2012/val`` for SegmentationObject.
            masks_of: these images, by default those of the split; matched by file name.

        Raises:
            DataError: nothing is annotated, or with boxes alone.
        """
        spec = annotation_spec(spec)
        listed = images(masks_of or spec, roots)
        places = _places_by_name(listed, masks_of or spec)
        records = tuple(
            (places[record.path.name], record)
            for record in _annotations(spec, roots)
            if record.path.name in places
        )
        if not records:
            raise DataError(f"{spec} annotates no object in the images of {masks_of or spec}")
        return cls(spec, listed, images_id(listed), records)


def _places_by_name(listed: ImageList, source: str) -> dict[str, int]:
    places = {PurePath(listed.name(index)).name: index for index in range(len(listed))}
    if len(places) < len(listed):
        raise DataError(
            f"{source} has images of the same file name in several folders, so that annotations "
            "cannot be matched to them"
        )
    return places


def _annotations(spec: str, roots: DataRoots) -> Sequence[Record | SegmentMap]:
    if spec_part(spec) == "segments":
        return segment_maps(spec, roots)
    data = read(spec, roots)
    require_segmentations(data)
    found = [r for r in data.records if any(not item.crowd for item in r.objects)]
    if any(item.segmentation is None for record in found for item in record.objects):
        raise DataError(f"{spec} has objects with a box but no outline; a box is no segment")
    return found
