"""Colours of an image's segments that stay with a region from one label map to the next.

A segment has a colour number. The first map's segments are numbered by area; a later map's take the
numbers of the segments they overlap with, one to one, so that the total overlap is largest.

Shape letters: H x W pixels, A and B labels of two maps.
"""

import functools
from collections.abc import Mapping

import numpy as np

MOST_COLOURS = 1024  # of 5,559 candidates
FIRST_COLOUR = (0.9, 0.25, 0.15)  # a red
BARE = -1  # colour number of pixels that stay as they are
Numbers = Mapping[int, int]  # label -> colour number


def numbers_by_area(labels_HW: np.ndarray) -> dict[int, int]:
    """Number the labels 0, 1, ... from the largest area on."""
    values, counts = np.unique(labels_HW, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {int(values[place]): number for number, place in enumerate(order)}


def numbers_by_overlap(
    labels_HW: np.ndarray, shown_HW: np.ndarray, fresh: int = 0
) -> dict[int, int]:
    """Number the labels after another map's colour numbers.

    A pair is one region if one of both lies in the other by half at least. Labels without a
    counterpart get numbers that neither the other map has nor, by ``fresh``, those before it.

    Args:
        shown_HW: colour numbers of the other map, of the same size.
        fresh: no map so far has this number or a larger one, but for the other map.
    """
    from scipy.optimize import linear_sum_assignment

    labels_A, at_A = np.unique(labels_HW, return_inverse=True)
    numbers_B, at_B = np.unique(shown_HW, return_inverse=True)
    table = np.bincount(
        at_A.ravel() * len(numbers_B) + at_B.ravel(), minlength=len(labels_A) * len(numbers_B)
    )
    overlaps_AB = table.reshape(len(labels_A), len(numbers_B))
    smaller_AB = np.minimum(overlaps_AB.sum(1)[:, None], overlaps_AB.sum(0))
    overlaps_AB = np.where((2 * overlaps_AB >= smaller_AB) & (numbers_B != BARE), overlaps_AB, 0)
    pairs = zip(*linear_sum_assignment(overlaps_AB, maximize=True), strict=True)
    taken = {int(labels_A[a]): int(numbers_B[b]) for a, b in pairs if overlaps_AB[a, b] > 0}
    fresh = max(fresh, int(numbers_B.max()) + 1)
    others = [label for label in numbers_by_area(labels_HW) if label not in taken]
    return taken | {label: fresh + place for place, label in enumerate(others)}


def colour_numbers(labels_HW: np.ndarray, numbers: Numbers) -> np.ndarray:
    """Colour number of each pixel; labels without one are bare."""
    values, inverse = np.unique(labels_HW, return_inverse=True)
    table = np.array([numbers.get(int(value), BARE) for value in values], np.int64)
    shown: np.ndarray = table[inverse.reshape(labels_HW.shape)]
    return shown


def palette(count: int) -> np.ndarray:
    """Colours 0..1 of the first numbers, (count, 3); they begin anew after ``MOST_COLOURS``.

    A number's colour depends on no other number.
    """
    colours: np.ndarray = _far_apart()[np.arange(count) % MOST_COLOURS]
    return colours


@functools.cache
def _far_apart() -> np.ndarray:
    """Colours of which each is as far as can be from all before it, as the eye sees it (CIELAB).

    Black, white and grays are none of them: outlines are white, and bare pixels show the image.
    """
    from skimage.color import rgb2lab

    steps = np.arange(0, 256, 15) / 255
    candidates_N3 = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    lab_N3 = rgb2lab(candidates_N3)
    lightness_N, chroma_N = lab_N3[:, 0], np.hypot(lab_N3[:, 1], lab_N3[:, 2])
    usable_N = (lightness_N > 15) & (lightness_N < 95) & (chroma_N > 10)
    candidates_N3, lab_N3 = candidates_N3[usable_N], lab_N3[usable_N]
    chosen = [int(np.abs(candidates_N3 - FIRST_COLOUR).sum(axis=1).argmin())]
    gaps_N = np.full(len(lab_N3), np.inf)
    while len(chosen) < MOST_COLOURS:
        gaps_N = np.minimum(gaps_N, ((lab_N3 - lab_N3[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(gaps_N.argmax()))
    colours: np.ndarray = candidates_N3[chosen]
    return colours


def outlines(numbers_HW: np.ndarray) -> np.ndarray:
    """Pixels beside another segment, bool (H, W): lines of two pixels."""
    edges_HW = np.zeros(numbers_HW.shape, bool)
    down = numbers_HW[1:] != numbers_HW[:-1]
    across = numbers_HW[:, 1:] != numbers_HW[:, :-1]
    edges_HW[1:] |= down
    edges_HW[:-1] |= down
    edges_HW[:, 1:] |= across
    edges_HW[:, :-1] |= across
    return edges_HW


def blend(image_HW3: np.ndarray, numbers_HW: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """The image with its segments laid over it and outlined in white, uint8 (H, W, 3)."""
    colours = 255 * palette(int(numbers_HW.max(initial=0)) + 1)
    covered_HW = numbers_HW != BARE
    shown = image_HW3.astype(np.float64)
    over = colours[numbers_HW[covered_HW]]
    shown[covered_HW] = (1 - strength) * shown[covered_HW] + strength * over
    shown[outlines(numbers_HW)] = 255
    return shown.round().astype(np.uint8)
