"""Masks that need no network (paper Fig. 5a): made once, before training, through the same store.

A source is a function (height, width) -> uint8 labels at stride 8.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pretrain.masks.store import MaskEntry, MaskStore, stored_size, write_store
from sslbench import dist
from sslbench.datasets import ImageList, image_size
from sslbench.log import RunLog

Source = Callable[[int, int], np.ndarray]

GRID = 5  # cells along a side of the image


def crop_labels(height: int, width: int) -> np.ndarray:
    """One mask: the whole image."""
    return np.zeros(stored_size(height, width), np.uint8)


def grid_labels(height: int, width: int) -> np.ndarray:
    """A 5x5 grid in image coordinates, id = 5 * row + column."""
    h, w = stored_size(height, width)
    rows = np.minimum((np.arange(h) * 8 + 4) * GRID // height, GRID - 1)
    columns = np.minimum((np.arange(w) * 8 + 4) * GRID // width, GRID - 1)
    return (GRID * rows[:, None] + columns).astype(np.uint8)


SOURCES: dict[str, Source] = {"crop": crop_labels, "grid": grid_labels}


def make_fixed_masks(
    source: str, images: ImageList, images_id: str, folder: Path, log: RunLog
) -> MaskStore:
    """Make the store of a fixed source, or reuse it where it is complete."""
    if dist.is_main() and not folder.exists():
        with log.progress(len(images), f"masks ({source})") as bar:
            entries = _entries(SOURCES[source], images, lambda: bar.advance())
            write_store(folder, entries, {"source": source, "images_id": images_id})
    dist.barrier()
    return MaskStore(folder, images_id)


def _entries(source: Source, images: ImageList, made: Callable[[], None]) -> Iterator[MaskEntry]:
    for index in range(len(images)):
        height, width = image_size(images.read(index), images.name(index))
        labels = source(height, width)
        yield MaskEntry(labels, height, width, clusters=int(labels.max()) + 1, group=index)
        made()
