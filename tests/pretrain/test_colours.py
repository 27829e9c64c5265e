"""Colours that stay with a region."""

import numpy as np
import pytest
from skimage.color import rgb2lab

from pretrain.masks.colours import (
    BARE,
    blend,
    colour_numbers,
    numbers_by_area,
    numbers_by_overlap,
    outlines,
    palette,
)


def test_the_first_map_is_numbered_by_area():
    assert numbers_by_area(np.array([[7, 7, 7], [2, 2, 9]])) == {7: 0, 2: 1, 9: 2}


def test_a_map_with_other_ids_keeps_its_colours():
    generator = np.random.default_rng(0)
    before = generator.integers(0, 6, (20, 30)).repeat(4, axis=1)
    renamed = np.array([40, 3, 17, 5, 99, 0])[before]
    shown = colour_numbers(before, numbers_by_area(before))
    assert np.array_equal(colour_numbers(renamed, numbers_by_overlap(renamed, shown)), shown)


def test_of_two_halves_the_larger_keeps_the_colour_and_the_other_gets_a_fresh_one():
    shown = np.zeros((4, 10), int)
    shown[:, 8:] = 1
    split = np.array([[5] * 5 + [6] * 3 + [7] * 2] * 4)
    assert numbers_by_overlap(split, shown) == {5: 0, 7: 1, 6: 2}


def test_a_number_that_a_map_gave_up_is_no_other_regions_later():
    first = np.repeat([0, 1, 2], [30, 20, 10])
    second = colour_numbers(np.repeat([0, 1], 30), numbers_by_overlap(np.repeat([0, 1], 30), first))
    assert second.max() == 1  # the third colour is gone
    split = np.repeat([0, 5, 1], [20, 10, 30])
    assert numbers_by_overlap(split, second, fresh=3) == {0: 0, 1: 1, 5: 3}


def test_total_overlap_decides_not_the_first_come():
    # alone the first label would take colour 0; together it is better off with colour 1
    shown = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1])
    labels = np.array([4, 4, 4, 8, 8, 8, 8, 4, 4, 4])
    assert numbers_by_overlap(labels, shown) == {8: 0, 4: 1}


def test_a_chance_overlap_is_no_region():
    shown = np.repeat([0, 1], 10)
    labels = np.roll(np.repeat([5, 6, 7, 8], 5), 2)
    taken = numbers_by_overlap(labels, shown)
    assert sorted(taken.values())[:2] == [0, 1]
    shown = np.array([0] * 9 + [1] + [2] * 9 + [1] * 9)
    labels = np.array([3] * 10 + [4] * 18)  # 3 holds one of ten pixels of colour 1
    assert 1 not in {numbers_by_overlap(labels, shown)[3]}


def test_bare_pixels_lend_no_colour():
    shown = np.array([BARE, BARE, BARE, 0])
    assert numbers_by_overlap(np.array([1, 1, 1, 2]), shown) == {2: 0, 1: 1}


def test_labels_without_a_number_show_the_image():
    image = np.full((2, 40, 3), 100, np.uint8)
    labels = np.array([[0] * 20 + [1] * 20] * 2)
    shown = blend(image, colour_numbers(labels, {1: 0}), strength=0.6)
    assert (shown[:, :19] == 100).all()
    assert (shown[:, 19:21] == 255).all()  # the outline
    expected = 0.4 * 100 + 0.6 * 255 * palette(1)[0]
    assert np.allclose(shown[0, 30], expected, atol=1)


def test_outlines_lie_on_both_sides_of_a_border():
    numbers = np.array([[0, 0, 0, 1, 1, 1]] * 3)
    assert np.array_equal(outlines(numbers)[1], [False, False, True, True, False, False])
    assert not outlines(np.zeros((3, 3), int)).any()


@pytest.mark.parametrize(("count", "least"), [(16, 45), (64, 24), (256, 13)])
def test_colours_lie_far_apart_to_the_eye(count, least):
    lab = rgb2lab(palette(count))  # one apart is just seen side by side, 100 is black and white
    distances = np.sqrt(((lab[:, None] - lab) ** 2).sum(axis=2)) + 1000 * np.eye(count)
    assert distances.min() > least


def test_a_number_has_its_colour_whatever_other_numbers_there_are():
    assert np.array_equal(palette(300)[:7], palette(7))
    assert np.array_equal(palette(1030)[1024:], palette(6))


def test_no_colour_is_that_of_outlines_or_of_bare_gray():
    colours = palette(256)
    assert (colours.max(axis=1) - colours.min(axis=1)).min() > 0.05
