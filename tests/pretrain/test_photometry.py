"""Colour operations against torchvision's, and their invariances."""

import colorsys

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from pretrain import photometry
from pretrain.photometry import Draws, Recipe

ALWAYS = Recipe(blur_probability=1.0, solarize_probability=1.0)


def _images(count: int = 3, size: int = 40) -> torch.Tensor:
    """Smooth colourful images: noise alone would hide errors of blur."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return images.clamp(0, 1)


OPERATIONS = [
    (photometry.brightness, reference.adjust_brightness, (0.6, 1.0, 1.4)),
    (photometry.contrast, reference.adjust_contrast, (0.6, 1.0, 1.4)),
    (photometry.saturation, reference.adjust_saturation, (0.8, 1.0, 1.2)),
    (photometry.hue, reference.adjust_hue, (-0.1, 0.0, 0.1)),
]


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"), OPERATIONS, ids=lambda o: getattr(o, "__name__", "")
)
def test_jitter_equals_torchvision(ours, theirs, factors):
    images = _images()
    made = ours(images, torch.tensor(factors))
    expected = torch.stack([theirs(image, f) for image, f in zip(images, factors, strict=True)])
    assert (made - expected).abs().mean() < 1 / 255
    assert (made - expected).abs().max() < 3 / 255


def test_blur_equals_torchvision():
    images, sigmas = _images(size=224), torch.tensor([0.1, 0.9, 2.0])
    made = photometry.blur(images, sigmas)
    expected = torch.stack(
        [
            reference.gaussian_blur(i, [23, 23], [s.item()] * 2)
            for i, s in zip(images, sigmas, strict=True)
        ]
    )
    assert (made - expected).abs().max() < 1e-5


def test_blur_of_a_small_crop_has_a_scaled_kernel():
    images, sigma = _images(size=64), torch.tensor([1.0] * 3)
    scaled = 1.0 * 64 / 224
    expected = reference.gaussian_blur(images, [7, 7], [scaled] * 2)
    assert (photometry.blur(images, sigma) - expected).abs().max() < 1e-5


def test_solarize_equals_torchvision():
    images = (_images() * 255).round().byte()
    made = photometry.solarize(images.float() / 255)
    assert torch.allclose(made, reference.solarize(images, 128).float() / 255, atol=1e-6)


def test_gray_stays_gray_under_saturation_and_hue():
    gray = torch.rand(4, 1, 8, 8).expand(4, 3, 8, 8).contiguous()
    changed = photometry.hue(
        photometry.saturation(gray, torch.full((4,), 1.2)), torch.full((4,), 0.1)
    )
    assert (changed - gray).abs().max() < 1e-3


def test_a_batch_equals_its_images_one_by_one():
    generator = np.random.default_rng(3)
    draws = [Draws.draw(generator, Recipe(0.5, 0.5)) for _ in range(12)]
    pixels = (_images(12, 32) * 255).byte()
    whole = photometry.apply(pixels, Draws.stack(draws))
    single = [photometry.apply(pixels[i : i + 1], Draws.stack([draws[i]])) for i in range(12)]
    assert (whole - torch.cat(single)).abs().max() < 1e-5


def test_the_jitter_order_is_followed():
    pixels = (_images(2, 16) * 255).byte()
    draws = Draws.stack([Draws.draw(np.random.default_rng(s), Recipe(0, 0)) for s in (0, 0)])
    orders = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    no = torch.zeros(2, dtype=torch.bool)
    made = photometry.apply(
        torch.stack([pixels[0], pixels[0]]), Draws(orders, draws.factors_B4, no, torch.zeros(2), no)
    )
    image, factors = pixels[:1].float() / 255, draws.factors_B4[:1]
    for row, order in enumerate(orders.tolist()):
        expected = image
        for index in order:
            expected = OPERATIONS[index][0](expected, factors[:, index])
        assert torch.allclose(made[row], photometry.normalise(expected)[0], atol=1e-5)


def test_probabilities_are_those_of_the_paper():
    generator = np.random.default_rng(0)
    draws = Draws.stack([Draws.draw(generator, Recipe(0.1, 0.2)) for _ in range(4000)])
    assert (draws.order_B4[:, 0] >= 0).double().mean().item() == pytest.approx(0.8, abs=0.02)
    assert draws.gray_B.double().mean().item() == pytest.approx(0.2, abs=0.02)
    assert (draws.sigma_B > 0).double().mean().item() == pytest.approx(0.1, abs=0.02)
    assert draws.solarize_B.double().mean().item() == pytest.approx(0.2, abs=0.02)
    low, high = draws.factors_B4.amin(0).tolist(), draws.factors_B4.amax(0).tolist()
    assert low == pytest.approx([0.6, 0.6, 0.8, -0.1], abs=0.01)
    assert high == pytest.approx([1.4, 1.4, 1.2, 0.1], abs=0.01)


def test_added_saturation_turns_gray_red_and_agrees_with_hsv():
    gray = torch.full((1, 3, 1, 1), 128 / 255)
    assert (photometry.add_saturation(gray, torch.ones(1)) * 255).flatten().tolist() == [128, 0, 0]
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    shifts = torch.tensor([0.3, -0.2])
    out = photometry.add_saturation(images, shifts)
    for n, shift in enumerate(shifts.tolist()):
        for pixel, made in zip(images[n].flatten(1).T, out[n].flatten(1).T, strict=True):
            h, s, v = colorsys.rgb_to_hsv(*pixel.tolist())
            expected = colorsys.hsv_to_rgb(h, min(max(s + shift, 0), 1), v)
            assert made.tolist() == pytest.approx(expected, abs=1e-5)
