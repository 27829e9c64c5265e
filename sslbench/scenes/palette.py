"""Colours of the scenes: dull surfaces, and objects that mostly wear the two hues of their class.

Brightness, contrast and light vary most: that is what augmentations teach a network to ignore. Hue
says something about a class, but not all objects wear their own, and clutter wears any.
"""

import colorsys

import numpy as np

from sslbench.scenes.textures import Array

OWN_HUES_SHARE = 0.85  # of the objects that wear their class's hues
HUE_SPREAD = 0.035
GOLDEN_TURN = 0.618  # successive classes lie far apart on the colour wheel
SECOND_HUES = (0.5, 0.2, 0.8, 0.35)  # turns from the first hue to the second, by class
MAX_DRAWS = 12


def any_colour(generator: np.random.Generator, hue: float | None = None) -> Array:
    """Draw RGB in [0, 1] of any hue, or strongly of about the one given."""
    drawn, saturation, value = generator.uniform((0, 0.1, 0.25), (1, 0.6, 0.95))
    if hue is not None:
        drawn, saturation = (hue + generator.normal(0, HUE_SPREAD)) % 1, 0.3 + saturation
    return np.array(colorsys.hsv_to_rgb(drawn, saturation, value), np.float32)


def surface_colours(generator: np.random.Generator) -> tuple[Array, Array]:
    """Draw two dull colours that are not far apart."""
    first_3 = np.float32(0.3) * any_colour(generator) + np.float32(generator.uniform(0.2, 0.6))
    share = np.float32(generator.uniform(0.25, 0.6))
    return first_3, first_3 + share * (any_colour(generator) - first_3)


def object_colours(
    shape: int, behind_3: Array, generator: np.random.Generator
) -> tuple[Array, Array]:
    """Draw two colours that stand out from each other and from what lies behind."""
    first = second = None
    if generator.random() < OWN_HUES_SHARE:
        first = shape * GOLDEN_TURN % 1
        second = (first + SECOND_HUES[shape % len(SECOND_HUES)]) % 1
    first_3 = _colour_unlike(behind_3, 0.22, generator, first)
    return first_3, _colour_unlike(first_3, 0.25, generator, second)


def _colour_unlike(
    other_3: Array, distance: float, generator: np.random.Generator, hue: float | None
) -> Array:
    for _ in range(MAX_DRAWS):
        colour_3 = any_colour(generator, hue)
        if np.abs(colour_3 - other_3).mean() >= distance:
            break
    return colour_3


def mix(first_3: Array, second_3: Array, weight_hw: Array) -> Array:
    """Blend two colours; weight 0 is the first."""
    return first_3 + weight_hw[..., None] * (second_3 - first_3)
