"""Textures of the scenes: patterns in [0, 1] over object coordinates, coloured later.

Shape letters: H, W pixels of the patch. ``u`` and ``v`` are object coordinates: 1 is its radius.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[np.floating[Any]]
Texture = Callable[[Array, Array, np.random.Generator], Array]
SHARPNESS = 1.8  # edges stay about a pixel wide, so that small objects do not alias


def _soft(wave_HW: Array) -> Array:
    clipped_HW: Array = np.clip(0.5 + SHARPNESS * wave_HW, 0.0, 1.0)
    return clipped_HW


def _waves_of(coordinate_HW: Array, frequency: float, phase: float) -> Array:
    wave_HW: Array = np.sin(np.float32(2 * np.pi * frequency) * coordinate_HW + np.float32(phase))
    return wave_HW


def _draw(generator: np.random.Generator, low: float, high: float) -> tuple[float, float]:
    """Draw a frequency in periods per radius and a phase."""
    return float(generator.uniform(low, high)), float(generator.uniform(0, 2 * np.pi))


def _stripes(u_HW: Array, v_HW: Array, generator: np.random.Generator) -> Array:
    return _soft(_waves_of(u_HW, *_draw(generator, 1.9, 2.7)))


def _checks(u_HW: Array, v_HW: Array, generator: np.random.Generator) -> Array:
    frequency, phase = _draw(generator, 1.2, 1.7)
    return _soft(2 * _waves_of(u_HW, frequency, phase) * _waves_of(v_HW, frequency, phase))


def _dots(u_HW: Array, v_HW: Array, generator: np.random.Generator) -> Array:
    frequency, phase = _draw(generator, 1.5, 2.1)
    lattice = _waves_of(u_HW + v_HW, frequency, phase) + _waves_of(u_HW - v_HW, frequency, phase)
    return _soft(1.5 * (lattice - 0.8))


def _rings(u_HW: Array, v_HW: Array, generator: np.random.Generator) -> Array:
    return _soft(_waves_of(np.hypot(u_HW, v_HW), *_draw(generator, 1.9, 2.7)))


def _zigzag(u_HW: Array, v_HW: Array, generator: np.random.Generator) -> Array:
    frequency, phase = _draw(generator, 1.6, 2.2)
    bend = np.abs((u_HW * np.float32(1.6) + np.float32(phase)) % 1 - np.float32(0.5))
    return _soft(_waves_of(v_HW + bend, frequency, phase))


def _net(u_HW: Array, v_HW: Array, generator: np.random.Generator) -> Array:
    frequency, phase = _draw(generator, 1.1, 1.5)
    lines = np.minimum(
        np.abs(_waves_of(u_HW, frequency, phase)), np.abs(_waves_of(v_HW, frequency, phase))
    )
    return _soft(2 * (lines - 0.4))


def _bricks(u_HW: Array, v_HW: Array, generator: np.random.Generator) -> Array:
    frequency, phase = _draw(generator, 1.0, 1.3)
    row_HW = np.floor((v_HW + np.float32(phase)) * np.float32(2 * frequency))
    shifted_HW = u_HW + np.float32(0.5 / frequency) * (row_HW % 2)
    upright_HW = np.abs(_waves_of(shifted_HW, frequency / 2, phase))
    level_HW = np.abs(_waves_of(v_HW + np.float32(phase), frequency, 0.0))
    return _soft(2 * (np.minimum(upright_HW, level_HW) - 0.35))


def _spokes(u_HW: Array, v_HW: Array, generator: np.random.Generator) -> Array:
    turn_HW = np.arctan2(v_HW, u_HW)
    count, phase = int(generator.integers(5, 8)), float(generator.uniform(0, 2 * np.pi))
    return _soft(np.sin(count * turn_HW + np.float32(phase)))


def _waves(u_HW: Array, v_HW: Array, generator: np.random.Generator) -> Array:
    frequency, phase = _draw(generator, 1.6, 2.2)
    bend_HW = np.float32(0.18) * _waves_of(u_HW, 1.1, phase)
    return _soft(_waves_of(v_HW + bend_HW, frequency, phase))


def _blotches(u_HW: Array, v_HW: Array, generator: np.random.Generator) -> Array:
    """Sum a few waves of random direction: an irregular pattern that turns with its object."""
    total_HW = np.zeros_like(u_HW)
    for angle in generator.uniform(0, 2 * np.pi, 5):
        along_HW = u_HW * np.float32(np.cos(angle)) + v_HW * np.float32(np.sin(angle))
        total_HW += _waves_of(along_HW, *_draw(generator, 0.9, 1.8))
    return _soft(0.7 * total_HW)


TEXTURES: Mapping[str, Texture] = {
    "striped": _stripes,
    "dotted": _dots,
    "checked": _checks,
    "ringed": _rings,
    "zigzag": _zigzag,
    "netted": _net,
    "bricked": _bricks,
    "spoked": _spokes,
    "wavy": _waves,
    "blotched": _blotches,
}


def clouds(height: int, width: int, generator: np.random.Generator, cell: float) -> Array:
    """Draw smooth noise in [0, 1] with three octaves; ``cell`` is the coarsest in pixels."""
    total_HW = np.zeros((height, width), np.float32)
    for octave in range(3):
        step = max(cell / 2**octave, 2.0)
        rows, columns = int(height / step) + 2, int(width / step) + 2
        coarse = generator.standard_normal((rows, columns), np.float32)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total_HW += np.asarray(smooth) * np.float32(0.5**octave)
    clipped_HW: Array = np.clip(0.5 + 0.35 * total_HW, 0.0, 1.0)
    return clipped_HW
