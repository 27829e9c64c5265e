"""Crops against torchvision, labels against a lookup pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from pretrain.views import ASPECT, Crop, cut_image, cut_labels, draw_crop


def _image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("flip", [False, True])
def test_image_equals_torchvision(flip: bool):
    image, crop = _image(70, 90), Crop(13, 5, 51, 44, flip)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    expected = reference.resized_crop(
        pixels, 5, 13, 44, 51, [32, 32], InterpolationMode.BICUBIC, antialias=True
    )
    expected = reference.horizontal_flip(expected) if flip else expected
    difference = (cut_image(image, crop, 32).int() - expected.int()).abs()
    assert difference.max() <= 1


def test_bilinear_looks_at_the_four_nearest_pixels_only():
    image, crop = _image(40, 40), Crop(4, 8, 30, 24, False)
    view = cut_image(image, crop, 6, "bilinear")
    for r in range(6):
        for c in range(6):
            y, x = (r + 0.5) * 24 / 6 - 0.5, (c + 0.5) * 30 / 6 - 0.5
            top, left = math.floor(y), math.floor(x)
            expected = np.zeros(3)
            for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
                for column, right in ((left, 1 - (x - left)), (left + 1, x - left)):
                    expected += down * right * image[8 + row, 4 + column]
            assert np.abs(view[:, r, c].numpy() - expected).max() <= 1


@pytest.mark.parametrize("seed", range(6))
def test_labels_equal_the_lookup_pixel_by_pixel(seed: int):
    generator = np.random.default_rng(seed)
    height, width = (int(n) for n in generator.integers(20, 120, 2))
    stored = generator.integers(0, 256, (-(-height // 8), -(-width // 8)), dtype=np.uint8)
    crop, size = draw_crop(generator, height, width), 24
    view = cut_labels(stored, (height, width), crop, size)
    for r in range(size):
        for c in range(size):
            column = size - 1 - c if crop.flip else c
            x = crop.x0 + (column + 0.5) * crop.width / size
            y = crop.y0 + (r + 0.5) * crop.height / size
            cell = int(y * stored.shape[0] / height), int(x * stored.shape[1] / width)
            assert view[r, c] == stored[cell]


def test_labels_move_with_the_image():
    """An image whose pixels show their own label: after crop, resize and flip both still agree."""
    stored = np.arange(48, dtype=np.uint8).reshape(6, 8)
    image = np.repeat(np.repeat(stored, 8, 0), 8, 1)[:, :, None].repeat(3, 2) * 5
    generator = np.random.default_rng(4)
    for _ in range(10):
        crop = draw_crop(generator, *image.shape[:2])
        shown = cut_image(image, crop, 64)[0].numpy().astype(int)
        labels = cut_labels(stored, image.shape[:2], crop, 64).astype(int) * 5
        # Resizing mixes neighbours at cell borders only.
        assert (np.abs(shown - labels) <= 2).mean() > 0.6


def test_crops_stay_inside_and_follow_the_limits():
    generator = np.random.default_rng(0)
    for _ in range(300):
        crop = draw_crop(generator, 60, 80)
        assert 0 <= crop.x0 <= 80 - crop.width
        assert 0 <= crop.y0 <= 60 - crop.height
        assert 0.07 < crop.width * crop.height / (60 * 80) <= 1
        assert ASPECT[0] - 0.1 < crop.width / crop.height < ASPECT[1] + 0.1


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (1, 1), (3, 3)])
def test_extreme_images_give_a_crop(height: int, width: int):
    generator = np.random.default_rng(0)
    for _ in range(50):
        crop = draw_crop(generator, height, width)
        assert 1 <= crop.width <= width
        assert 1 <= crop.height <= height
        assert cut_image(_image(height, width), crop, 16).shape == (3, 16, 16)
