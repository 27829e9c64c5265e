"""Exact outlines of binary masks: polygons along pixel edges, and COCO's uncompressed RLE."""

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
# Directions of walk in image coordinates, clockwise: right, down, left, up.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def polygons(mask_HW: Mask) -> list[list[int]]:
    """Return polygons ``[x, y, x, y, ...]`` that cover the mask's pixels and no others.

    COCO's polygons have no holes, so a mask with a hole is cut in two along a column through it.
    """
    loops = _loops(mask_HW)
    hole = next((loop for loop in loops if _signed_area(loop) < 0), None)
    if hole is None:
        return [[coordinate for point in loop for coordinate in point] for loop in loops]
    columns = [x for x, _ in hole]
    cut = (min(columns) + max(columns)) // 2
    # A hole one pixel wide has no column inside it: its own left edge opens it.
    left_HW, right_HW = mask_HW.copy(), mask_HW.copy()
    left_HW[:, max(cut, min(columns) + 1) :] = False
    right_HW[:, : max(cut, min(columns) + 1)] = False
    return polygons(left_HW) + polygons(right_HW)


def rle(mask_HW: Mask) -> dict[str, list[int]]:
    """Return COCO's uncompressed run lengths: column by column, zeros first."""
    flat = np.concatenate([[False], mask_HW.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], changes, [flat.size - 1]]))
    return {"size": [int(side) for side in mask_HW.shape], "counts": [int(run) for run in runs]}


def bounds(mask_HW: Mask) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 with exclusive ends."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _loops(mask_HW: Mask) -> list[list[tuple[int, int]]]:
    """Walk all outlines with the mask on the right hand: outer ones clockwise, holes not."""
    leaving = _edges(mask_HW)
    loops = []
    while leaving:
        start = next(iter(leaving))
        direction = leaving[start][0]
        loop, point = [], start
        while True:
            loop.append(point)
            point, direction = _walk_straight(leaving, point, direction)
            if point == start:
                break
        loops.append(loop)
    return loops


def _edges(mask_HW: Mask) -> dict[tuple[int, int], list[int]]:
    """Map each corner to the directions of the boundary edges that leave it."""
    padded = np.pad(mask_HW, 1)
    inside = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))  # where the top, right, bottom, left edge starts
    leaving: dict[tuple[int, int], list[int]] = {}
    for direction, (neighbour, (dx, dy)) in enumerate(zip(neighbours, corners, strict=True)):
        ys, xs = np.nonzero(inside & ~neighbour)
        for x, y in zip((xs + dx).tolist(), (ys + dy).tolist(), strict=True):
            leaving.setdefault((x, y), []).append(direction)
    return leaving


def _walk_straight(
    leaving: dict[tuple[int, int], list[int]], point: tuple[int, int], direction: int
) -> tuple[tuple[int, int], int]:
    """Use up edges in one direction; return the corner where the outline turns and where to."""
    while True:
        leaving[point].remove(direction)
        if not leaving[point]:
            del leaving[point]
        point = (point[0] + _STEPS[direction][0], point[1] + _STEPS[direction][1])
        onward = leaving.get(point)
        if onward is None:
            return point, direction  # back at the start, whose edge is used up
        # Where two pixels touch by a corner, the right turn stays with the same pixel.
        turn = (direction + 1) % 4
        following = turn if turn in onward else onward[0]
        if following != direction:
            return point, following


def _signed_area(loop: list[tuple[int, int]]) -> float:
    x, y = np.array(loop).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)
