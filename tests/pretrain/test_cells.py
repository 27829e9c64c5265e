"""Pixels to cells and back."""

import numpy as np
import pytest

from pretrain.masks.cells import by_area, cell_of_pixels, enlarge, majority


def slow_majority(labels):
    """One cell at a time; a pixel belongs to the cell that holds its centre."""
    height, width = labels.shape
    h, w = -(-height // 8), -(-width // 8)
    made = np.zeros((h, w), int)
    for y in range(h):
        for x in range(w):
            inside = [
                labels[row, column]
                for row in range(height)
                for column in range(width)
                if int((row + 0.5) * h / height) == y and int((column + 0.5) * w / width) == x
            ]
            made[y, x] = min(set(inside), key=lambda label: (-inside.count(label), label))
    return made


@pytest.mark.parametrize("size", [(16, 24), (19, 13), (5, 7), (1, 33)])
def test_majority_agrees_with_the_loops(size):
    labels = np.random.default_rng(0).integers(0, 400, size) // 130 * 130  # few values, many ties
    assert np.array_equal(majority(labels), slow_majority(labels))


def test_a_map_survives_being_enlarged_and_reduced():
    labels = np.random.default_rng(0).integers(0, 9, (6, 9))
    assert np.array_equal(majority(enlarge(labels, 43, 67)), labels)


def test_every_cell_has_pixels():
    for pixels in range(1, 200):
        cells = -(-pixels // 8)
        assert np.array_equal(np.unique(cell_of_pixels(pixels, cells)), np.arange(cells))


def test_labels_are_numbered_by_area():
    assert np.array_equal(by_area(np.array([[7, 7, 90], [7, 4, 90]])), [[0, 0, 1], [0, 2, 1]])


def test_the_smallest_of_too_many_segments_share_the_last_label():
    labels = np.repeat(np.arange(300), np.arange(300, 0, -1))[None]  # 300 of label 0, 1 of 299
    numbered = by_area(labels)
    assert numbered.dtype == np.uint8
    assert np.array_equal(numbered, np.minimum(labels, 255))
