"""Outlines of the scenes' object classes, as polygons inside the unit circle.

The order of ``OUTLINES`` is the order of frequency: the first class is the most common one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.floating[Any]]  # (N, 2): x to the right, y down


def _polar(angles: npt.ArrayLike, radii: npt.ArrayLike) -> Points:
    angles_N, radii_N = np.broadcast_arrays(np.asarray(angles, float), np.asarray(radii, float))
    return np.stack([radii_N * np.sin(angles_N), -radii_N * np.cos(angles_N)], axis=1)


def _turns(count: int) -> Points:
    return np.arange(count) * (2 * np.pi / count)


def _star() -> Points:
    return _polar(_turns(10), np.tile([1.0, 0.45], 5))


def _fish() -> Points:
    along = np.linspace(-np.pi * 0.86, np.pi * 0.86, 30)
    body = np.stack([0.3 - 0.7 * np.cos(along + np.pi), 0.55 * np.sin(along + np.pi)], axis=1)
    tail = np.array([[-0.95, -0.5], [-0.72, 0.0], [-0.95, 0.5]])
    return np.concatenate([body, tail])


def _gear() -> Points:
    return _polar(_turns(32), np.tile([1.0, 1.0, 0.68, 0.68], 8))


def _arrow() -> Points:
    right = [[0.0, -1.0], [0.72, -0.15], [0.28, -0.15], [0.28, 0.95]]
    return _mirrored(right)


def _heart() -> Points:
    t = _turns(40)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2], axis=1) / 17


def _bottle() -> Points:
    right = [[0.0, -1.0], [0.17, -1.0], [0.17, -0.5], [0.36, -0.25], [0.42, 0.0], [0.42, 0.95]]
    return _mirrored(right)


def _cross() -> Points:
    right = [[0.0, -0.95], [0.33, -0.95], [0.33, -0.33], [0.95, -0.33], [0.95, 0.33]]
    return _mirrored([*right, [0.33, 0.33], [0.33, 0.95]])


def _crescent() -> Points:
    outer = _polar(np.linspace(0.35, 2 * np.pi - 0.35, 32) + np.pi / 2, 1.0)
    inner = _polar(np.linspace(2 * np.pi - 0.62, 0.62, 26) + np.pi / 2, 0.68)
    inner[:, 0] += 0.3
    return np.concatenate([outer, inner])


def _mushroom() -> Points:
    cap = _polar(np.linspace(0.0, np.pi / 2, 14), 0.95) * [1.0, 0.95]
    return _mirrored([*cap.tolist(), [0.8, 0.15], [0.26, 0.15], [0.34, 0.9]])


def _bolt() -> Points:
    return np.array(
        [[0.25, -1.0], [-0.55, 0.12], [-0.08, 0.12], [-0.3, 1.0], [0.58, -0.22], [0.1, -0.22]]
    )


def _mirrored(right: list[list[float]]) -> Points:
    """Close the right half of a shape, listed from top to bottom, with its mirror image."""
    half = np.array(right)
    return np.concatenate([half, half[::-1] * [-1.0, 1.0]])


OUTLINES: Mapping[str, Callable[[], Points]] = {
    "star": _star,
    "fish": _fish,
    "gear": _gear,
    "arrow": _arrow,
    "heart": _heart,
    "bottle": _bottle,
    "cross": _cross,
    "crescent": _crescent,
}
