"""A picture while it is drawn: its pixels, and which object is seen at each of them.

Shape letters: H, W pixels of the picture; h, w of the window that an outline covers.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from sslbench.scenes.shapes import Points
from sslbench.scenes.textures import Array

OVERSAMPLING = 4  # of outlines, for smooth edges
SHADOW_DEPTH = 0.45
NOBODY = -1


@dataclass(frozen=True)
class Place:
    """Where an outline goes: its middle and radius in pixels, its turn in radians."""

    center: tuple[float, float]
    radius: float
    angle: float

    def coordinates(self, window: tuple[slice, slice], angle: float) -> tuple[Array, Array]:
        """Return (u, v) of a window's pixels: 1 is the radius, turned by ``angle``."""
        y_hw, x_hw = np.mgrid[window].astype(np.float32)
        return turned(x_hw - self.center[0], y_hw - self.center[1], angle, self.radius)


@dataclass(frozen=True)
class Stencil:
    """A rasterized outline.

    Args:
        alpha_hw: in [0, 1], the part that lies on the canvas.
        full: pixels of the whole outline, on the canvas or not.
    """

    alpha_hw: Array
    left: int
    top: int
    full: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that the stencil covers."""
        height, width = self.alpha_hw.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


class Canvas:
    """Pixels float32 in [0, 1], and owner_HW: the object seen at each pixel, or NOBODY."""

    def __init__(self, pixels_HW3: Array) -> None:
        self.pixels_HW3 = pixels_HW3
        self.owner_HW = np.full(pixels_HW3.shape[:2], NOBODY, np.int16)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width, _ = self.pixels_HW3.shape
        return height, width

    def stencil(self, outline: Points, place: Place) -> Stencil | None:
        """Turn, scale and rasterize an outline; None where nothing of it lies on the canvas."""
        cosine, sine = np.cos(place.angle), np.sin(place.angle)
        turn = np.array([[cosine, sine], [-sine, cosine]])
        points = place.radius * outline @ turn + np.array(place.center)
        low = np.floor(points.min(axis=0)).astype(int) - 1
        size = np.ceil(points.max(axis=0)).astype(int) + 1 - low
        large = Image.new("L", (int(size[0]) * OVERSAMPLING, int(size[1]) * OVERSAMPLING))
        ImageDraw.Draw(large).polygon(((points - low) * OVERSAMPLING).ravel().tolist(), fill=255)
        alpha_hw = np.asarray(large.reduce(OVERSAMPLING), np.float32) / np.float32(255)
        left, top = np.maximum(low, 0).tolist()
        right, bottom = np.minimum(low + size, self.size[::-1]).tolist()
        if right <= left or bottom <= top:
            return None
        inside_hw = alpha_hw[top - low[1] : bottom - low[1], left - low[0] : right - low[0]]
        return Stencil(inside_hw, left, top, int((alpha_hw >= 0.5).sum()))

    def paint(self, stencil: Stencil, colours_hw3: Array, owner: int) -> None:
        """Lay colours over the window; ``owner`` is seen where alpha is at least a half."""
        window, alpha_hw1 = stencil.window, stencil.alpha_hw[..., None]
        self.pixels_HW3[window] += alpha_hw1 * (colours_hw3 - self.pixels_HW3[window])
        self.owner_HW[window][stencil.alpha_hw >= 0.5] = owner

    def shade(self, stencil: Stencil, shift: tuple[int, int]) -> None:
        """Darken where the object, ``shift`` (x, y) pixels away, throws a soft shadow."""
        height, width = self.size
        shadow = Image.new("F", (width, height))
        corner = (stencil.left + shift[0], stencil.top + shift[1])
        shadow.paste(Image.fromarray(stencil.alpha_hw), corner)
        small = shadow.resize((width // 4, height // 4), Image.Resampling.BOX)
        soft_HW = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
        self.pixels_HW3 *= 1 - np.float32(SHADOW_DEPTH) * np.clip(soft_HW, 0, 1)[..., None]

    def seen(self, num_owners: int) -> list[int]:
        """Count the pixels where each object is seen."""
        return _count(self.owner_HW, num_owners)

    def hidden_by(self, stencil: Stencil, num_owners: int) -> list[int]:
        """Count the pixels of each object that painting the stencil would hide."""
        return _count(self.owner_HW[stencil.window][stencil.alpha_hw >= 0.5], num_owners)


def _count(owners: np.ndarray[tuple[int, ...], np.dtype[np.int16]], num_owners: int) -> list[int]:
    counts = np.bincount(owners.ravel() - NOBODY, minlength=num_owners + 1)
    return [int(count) for count in counts[1:]]


def turned(x: Array, y: Array, angle: float, scale: float) -> tuple[Array, Array]:
    """Express offsets in a frame turned by ``angle`` whose unit is ``scale``."""
    cosine, sine = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    return x * cosine + y * sine, y * cosine - x * sine
