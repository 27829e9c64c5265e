"""Sizes of masks in COCO's compressed run-length form, of many masks at once.

A mask is a string of run lengths, alternately outside and inside. A number is written with five
bits a character, lowest first; the sixth bit says that more follow, the last character's fifth bit
is the sign. From the fourth number on the difference from the number two before is written.

Shape letters: C characters and T numbers of all masks, N masks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FIRST, MORE, SIGN, LOW = 48, 32, 16, 31
LONGEST = 12  # characters of a number that fits into 64 bits
BLOCK = 256  # masks added up at once: what fits into a processor's cache


class MaskSizes(NamedTuple):
    """Pixels that the runs cover, which must be height x width, and those inside the mask."""

    pixels_N: npt.NDArray[np.int64]
    areas_N: npt.NDArray[np.int64]


def mask_sizes(counts: Sequence[str]) -> MaskSizes:
    """Add up the runs without drawing the masks; a string that is none covers -1 pixels."""
    blocks = [counts[first : first + BLOCK] for first in range(0, len(counts), BLOCK)]
    found = [_block_sizes(block) for block in blocks] or [_broken(0)]
    pixels, areas = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return MaskSizes(pixels, areas)


def _block_sizes(counts: Sequence[str]) -> MaskSizes:
    lengths_N = np.array([len(text) for text in counts], np.int64)
    text = "".join(counts)
    if not lengths_N.all() or not text.isascii():
        return _each_alone(counts)
    raw_C = np.frombuffer(text.encode("ascii"), np.uint8) - np.uint8(FIRST)  # below FIRST: large
    is_end_C = (raw_C & MORE) == 0
    ends_T = np.flatnonzero(is_end_C)
    ends_N = np.cumsum(lengths_N)
    if raw_C.max() >= 2 * MORE or not is_end_C[ends_N - 1].all():
        return _each_alone(counts)
    starts_T = np.concatenate([[0], ends_T[:-1] + 1])
    widths_T = ends_T - starts_T + 1
    if widths_T.max() > LONGEST:
        return _each_alone(counts)
    numbers_T = _numbers(raw_C, starts_T, widths_T)
    return _sums(numbers_T, np.searchsorted(starts_T, ends_N - lengths_N))


def _each_alone(counts: Sequence[str]) -> MaskSizes:
    """The same where at least one string is broken."""
    if len(counts) == 1:
        return _broken(1)
    found = [_block_sizes([text]) for text in counts]
    pixels, areas = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return MaskSizes(pixels, areas)


def _broken(number: int) -> MaskSizes:
    return MaskSizes(np.full(number, -1, np.int64), np.full(number, -1, np.int64))


def _numbers(
    raw_C: npt.NDArray[np.uint8], starts_T: npt.NDArray[np.int64], widths_T: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    numbers_T = (raw_C[starts_T] & LOW).astype(np.int64)
    for place in range(1, int(widths_T.max())):
        longer = np.flatnonzero(widths_T > place)
        numbers_T[longer] += (raw_C[starts_T[longer] + place] & LOW).astype(np.int64) << 5 * place
    negative = np.flatnonzero(raw_C[starts_T + widths_T - 1] & SIGN)
    numbers_T[negative] -= np.int64(1) << (5 * widths_T[negative])
    return numbers_T


def _sums(numbers_T: npt.NDArray[np.int64], first_N: npt.NDArray[np.int64]) -> MaskSizes:
    """A number counts for itself and for every second one after it that builds on it."""
    end_N = np.append(first_N[1:], len(numbers_T))
    left_T = np.repeat(end_N, end_N - first_N) - np.arange(len(numbers_T))  # itself included
    times_T = (left_T + 1) >> 1
    times_T[first_N] = 1  # the third number does not build on the first
    runs_T = numbers_T * times_T
    pixels_N = np.add.reduceat(runs_T, first_N)
    # a number at an odd place is a run inside: its parity is that of what is left, or the other
    is_inside_T = (left_T ^ np.repeat(end_N - first_N, end_N - first_N)) & 1
    return MaskSizes(pixels_N, np.add.reduceat(runs_T * is_inside_T, first_N))
