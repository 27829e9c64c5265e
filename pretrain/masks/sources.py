"""Masks that need no network (paper Fig. 5a): made once, before training, through the same store.

A source turns a picture into uint8 labels at stride 8; it depends on nothing but the picture, so
that any process may make any block of images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.masks import boxes
from pretrain.masks.boxes import box_labels, contrib
from pretrain.masks.cells import by_area, cell_of_pixels, majority
from pretrain.masks.ground_truth import Annotations
from pretrain.masks.parts import Part, Shows, make_in_parts
from pretrain.masks.store import MaskEntry, MaskError, MaskStore, stored_size
from sslbench.datasets import ImageList, decode_rgb, image_size
from sslbench.loading import made_ahead

GRID = 5  # cells along a side of the image
BLOCK = 64  # images that are made, and kept, together
SLOW = ("felzenszwalb", "boxes")  # worth several processes

# DetCon's settings (Henaff et al. 2021, Sec. 3), the scale as scikit-image counts it.
FH_SCALE, FH_MIN_SIZE = 1000, 1000
FH_SIGMA = 0.8  # of the blur before the search, in pixels; Felzenszwalb and Huttenlocher's


@dataclass(frozen=True)
class Picture:
    """An image file; decoded only by the sources that look at its pixels."""

    name: str
    data: bytes

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return image_size(self.data, self.name)

    def pixels(self) -> np.ndarray:
        """Colours, uint8 (H, W, 3)."""
        return decode_rgb(self.data, self.name)


Source = Callable[[Picture], np.ndarray]


def crop_labels(height: int, width: int) -> np.ndarray:
    """One mask: the whole image."""
    return np.zeros(stored_size(height, width), np.uint8)


def grid_labels(height: int, width: int) -> np.ndarray:
    """A 5x5 grid in image coordinates, id = 5 * row + column, by the centre of each cell."""
    h, w = stored_size(height, width)
    grid_hw = GRID * cell_of_pixels(h, GRID)[:, None] + cell_of_pixels(w, GRID)
    return grid_hw.astype(np.uint8)


def felzenszwalb_labels(image_HW3: np.ndarray) -> np.ndarray:
    """Segments of Felzenszwalb and Huttenlocher (2004) at full resolution, numbered by area."""
    from skimage.segmentation import felzenszwalb

    return by_area(majority(felzenszwalb(image_HW3, **_felzenszwalb_settings())))


def _felzenszwalb_settings() -> dict[str, float]:
    return {"scale": FH_SCALE, "min_size": FH_MIN_SIZE, "sigma": FH_SIGMA}


def _box_settings() -> dict[str, float]:
    names = ("SEARCH_SIDE", "MIN_SIDE", "MAX_ASPECT", "MAX_OVERLAP", "MAX_BOXES")
    return {name.lower(): getattr(boxes, name) for name in names}


def _crop(picture: Picture) -> np.ndarray:
    return crop_labels(*picture.size)


def _grid(picture: Picture) -> np.ndarray:
    return grid_labels(*picture.size)


def _felzenszwalb(picture: Picture) -> np.ndarray:
    return felzenszwalb_labels(picture.pixels())


def _boxes(picture: Picture) -> np.ndarray:
    return box_labels(picture.pixels())


@dataclass(frozen=True)
class _GroundTruth:
    annotations: Annotations

    def __call__(self, picture: Picture) -> np.ndarray:
        return self.annotations.labels(picture.name, picture.size)


SOURCES: dict[str, Source] = {
    "crop": _crop,
    "grid": _grid,
    "felzenszwalb": _felzenszwalb,
    "boxes": _boxes,
}


# What decides the masks of those that have anything to set.
SETTINGS: dict[str, Callable[[], dict[str, float]]] = {
    "felzenszwalb": _felzenszwalb_settings,
    "boxes": _box_settings,
}


def require_source(source: str) -> None:
    """Refuse a source that lacks what it is made with, before anything is begun.

    Raises:
        MaskError: it says what to install.
    """
    if source == "boxes":
        contrib()


def make_fixed_masks(
    source: str,
    images: ImageList,
    images_id: str,
    folder: Path,
    log: Shows,
    *,
    annotations: Annotations | None = None,
    num_workers: int = 0,
) -> MaskStore:
    """Make the store of a fixed source, or reuse it where it is complete.

    Args:
        annotations: for ``ground_truth``, of the same images.
        num_workers: processes that help this one with a slow source.

    Raises:
        MaskError: the folder holds masks of other images, or the source lacks what it needs.
    """
    if folder.exists():
        MaskStore(folder, images_id)  # refuses masks of other images
    manifest = manifest_of(source, images_id, annotations)
    labels = _GroundTruth(annotations) if source == "ground_truth" else SOURCES[source]
    blocks = _Blocks(labels, images)
    num_workers = num_workers if source in SLOW else 0

    def make(numbers: Sequence[int]) -> Iterator[Part]:
        if isinstance(labels, _GroundTruth) and numbers:
            labels.annotations.require_any(images.names)
        return made_ahead(blocks, numbers, num_workers)

    num_blocks = -(-len(images) // BLOCK)
    return make_in_parts(folder, manifest, num_blocks, make, f"masks ({source})", log)


def manifest_of(
    source: str, images_id: str, annotations: Annotations | None = None
) -> dict[str, Any]:
    """All that decides the masks, as their manifest tells it.

    Raises:
        MaskError: ``ground_truth`` without annotations.
    """
    manifest: dict[str, Any] = {"source": source, "images_id": images_id}
    if source in SETTINGS:
        manifest["settings"] = SETTINGS[source]()
    if source == "ground_truth":
        if annotations is None:
            raise MaskError("masks.source='ground_truth' was given no annotations")
        manifest["annotations"] = annotations.content_id()
    return manifest


@dataclass(frozen=True)
class _Blocks:
    """Makes the parts of blocks of neighbouring images."""

    source: Source
    images: ImageList

    def __call__(self, block: int) -> Part:
        """Masks of one block."""
        first = block * BLOCK
        return {i: self._entry(i) for i in range(first, min(first + BLOCK, len(self.images)))}

    def _entry(self, index: int) -> MaskEntry:
        picture = Picture(self.images.name(index), self.images.read(index))
        labels_hw = self.source(picture)
        return MaskEntry(labels_hw, *picture.size, clusters=int(labels_hw.max()) + 1, group=index)
