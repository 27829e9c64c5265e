"""Geometry of a view: random resized crop and flip, the same for the image and its labels.

The photometric part is in ``photometry.py``.

Shape letters: H x W pixels of the image, h x w cells of a stored label map, S output side.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear"]

AREA = (0.08, 1.0)  # share of the image
ASPECT = (3 / 4, 4 / 3)  # width over height
TRIES = 10


@dataclass(frozen=True)
class Crop:
    """A rectangle of the image in whole pixels, mirrored afterwards where ``flip``."""

    x0: int
    y0: int
    width: int
    height: int
    flip: bool

    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, width, height)."""
        return self.x0, self.y0, self.width, self.height


def draw_crop(generator: np.random.Generator, height: int, width: int) -> Crop:
    """Draw a random resized crop: area uniform, aspect log-uniform; after ten tries the centre."""
    flip = bool(generator.random() < 0.5)
    for _ in range(TRIES):
        area = height * width * generator.uniform(*AREA)
        aspect = math.exp(generator.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x0, y0 = generator.integers(width - w + 1), generator.integers(height - h + 1)
            return Crop(int(x0), int(y0), w, h, flip)
    return _centre_crop(height, width, flip)


def _centre_crop(height: int, width: int, flip: bool) -> Crop:
    """Largest centred crop within the aspect limits."""
    w = min(width, max(1, round(height * ASPECT[1])))
    h = min(height, max(1, round(width / ASPECT[0])))
    return Crop((width - w) // 2, (height - h) // 2, w, h, flip)


def cut_image(
    image_HW3: np.ndarray, crop: Crop, size: int, interpolation: Interpolation = "bicubic"
) -> Tensor:
    """Crop, resize and flip: uint8 (3, S, S).

    Args:
        image_HW3: uint8 RGB. Its interleaved layout is kept: resizing that is the fastest.
        interpolation: antialiased bicubic, or bilinear without antialiasing (OpenCV's).
    """
    x0, y0, w, h = crop.box()
    cut_3hw = torch.from_numpy(image_HW3[y0 : y0 + h, x0 : x0 + w].copy()).permute(2, 0, 1)
    view = F.interpolate(
        cut_3hw[None],
        (size, size),
        mode=interpolation,
        antialias=interpolation == "bicubic",
        align_corners=False,
    )[0]
    return view.flip(2) if crop.flip else view


def cut_labels(
    labels_hw: np.ndarray, image_size: tuple[int, int], crop: Crop, size: int
) -> np.ndarray:
    """Label of every output pixel: uint8 (S, S).

    Looks up the cell of the stored map that contains the pixel's centre in the image. The map is
    never enlarged, and labels are never interpolated.

    Args:
        image_size: (H, W) of the image that the map belongs to.
    """
    rows_S = _cells(crop.y0, crop.height, size, labels_hw.shape[0], image_size[0])
    columns_S = _cells(crop.x0, crop.width, size, labels_hw.shape[1], image_size[1])
    if crop.flip:
        columns_S = columns_S[::-1]
    view: np.ndarray = labels_hw[rows_S[:, None], columns_S]
    return view


def _cells(start: int, length: int, size: int, num_cells: int, num_pixels: int) -> np.ndarray:
    centres = start + (np.arange(size) + 0.5) * length / size
    cells = np.floor(centres * num_cells / num_pixels).astype(np.int64)
    return np.clip(cells, 0, num_cells - 1)
