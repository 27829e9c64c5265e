"""Pixels to cells of a stored map and back; a cell is 8x8 pixels, or the share of a partial one.

Shape letters: H x W pixels, h x w cells.
"""

import numpy as np

from pretrain.masks.store import stored_size

MAX_LABELS = 256  # a stored label is one byte


def cell_of_pixels(num_pixels: int, num_cells: int) -> np.ndarray:
    """Cell of each pixel along one side: the one that holds the pixel's centre."""
    return ((np.arange(num_pixels) + 0.5) * num_cells / num_pixels).astype(np.int64)


def enlarge(labels_hw: np.ndarray, height: int, width: int) -> np.ndarray:
    """Label of every pixel of the image, by the cell that holds its centre."""
    h, w = labels_hw.shape
    grown: np.ndarray = labels_hw[cell_of_pixels(height, h)[:, None], cell_of_pixels(width, w)]
    return grown


def majority(labels_HW: np.ndarray) -> np.ndarray:
    """Most frequent label of each cell, int64 (h, w); of equally frequent ones the smallest.

    Args:
        labels_HW: not negative.
    """
    h, w = stored_size(*labels_HW.shape)
    cells_HW = cell_of_pixels(labels_HW.shape[0], h)[:, None] * w
    cells_HW = cells_HW + cell_of_pixels(labels_HW.shape[1], w)
    span = int(labels_HW.max()) + 1
    pairs, counts = np.unique(cells_HW * span + labels_HW, return_counts=True)
    order = np.lexsort((pairs, -counts, pairs // span))
    _, first = np.unique(pairs[order] // span, return_index=True)
    winners: np.ndarray = (pairs[order[first]] % span).reshape(h, w)
    return winners


def cell_colours(image_HW3: np.ndarray) -> np.ndarray:
    """Mean colour of each cell, float64 (h, w, 3) on the image's scale."""
    height, width = image_HW3.shape[:2]
    h, w = stored_size(height, width)
    rows_H, columns_W = cell_of_pixels(height, h), cell_of_pixels(width, w)
    starts_h = np.searchsorted(rows_H, np.arange(h))
    starts_w = np.searchsorted(columns_W, np.arange(w))
    sums_hW3 = np.add.reduceat(image_HW3.astype(np.float64), starts_h, axis=0)
    sums_hw3 = np.add.reduceat(sums_hW3, starts_w, axis=1)
    sizes_hw = np.bincount(rows_H)[:, None] * np.bincount(columns_W)
    colours: np.ndarray = sums_hw3 / sizes_hw[..., None]
    return colours


def by_area(labels_hw: np.ndarray) -> np.ndarray:
    """Number the labels 0, 1, ... from the largest area on, as uint8.

    A map of more than 256 labels keeps the 255 largest; all smaller ones share label 255.
    """
    _, inverse, counts = np.unique(labels_hw, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    numbers: np.ndarray = np.minimum(rank, MAX_LABELS - 1)[inverse.reshape(labels_hw.shape)]
    return numbers.astype(np.uint8)
