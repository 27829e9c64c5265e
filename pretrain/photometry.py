"""Colour jitter, grayscale, blur and solarisation of a batch of views, on the training device.

Each image has its own draws, made in the loader from (seed, epoch, image); here they are applied to
all images at once. The operations equal torchvision's within rounding, several times as fast.

Shape letters: B images, S pixels along a side, n images of a subset.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

GRAY = (0.2989, 0.587, 0.114)  # luma weights
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
STRENGTH = (0.4, 0.4, 0.2, 0.1)  # half widths of the jitter factors; hue as share of the circle
JITTER_PROBABILITY, GRAY_PROBABILITY = 0.8, 0.2
BLUR_KERNEL, BLUR_SIGMA, BLUR_CROP = 23, (0.1, 2.0), 224  # for a 224-pixel crop; scaled for others
SOLARIZE_THRESHOLD = 128 / 255

Operation = Callable[[Tensor, Tensor], Tensor]
Saturation = Literal["multiplied", "added"]


@dataclass(frozen=True)
class Recipe:
    """How one view's appearance is changed. Both views of BYOL share the rest."""

    blur_probability: float
    solarize_probability: float


@dataclass(frozen=True)
class Draws:
    """Random numbers of the photometric operations, of one view (NumPy) or a batch (tensors)."""

    order_B4: Tensor  # int64, in which order the jitter operations come; -1 = no jitter
    factors_B4: Tensor  # float32, brightness, contrast, saturation, hue shift
    gray_B: Tensor  # bool
    sigma_B: Tensor  # float32, of the blur in pixels of a 224 crop; 0 = none
    solarize_B: Tensor  # bool

    @classmethod
    def draw(cls, generator: np.random.Generator, recipe: Recipe) -> Self:
        """Draw for one view; always the same number of draws."""
        uniforms = generator.random(4)
        order = generator.permutation(4)
        if uniforms[0] >= JITTER_PROBABILITY:
            order = np.full_like(order, -1)
        factors = [generator.uniform(1 - s, 1 + s) for s in STRENGTH[:HUE]]
        factors.append(generator.uniform(-STRENGTH[HUE], STRENGTH[HUE]))
        sigma = generator.uniform(*BLUR_SIGMA)
        return cls(
            order_B4=torch.from_numpy(order),
            factors_B4=torch.tensor(factors),
            gray_B=torch.tensor(uniforms[1] < GRAY_PROBABILITY),
            sigma_B=torch.tensor(sigma if uniforms[2] < recipe.blur_probability else 0.0),
            solarize_B=torch.tensor(uniforms[3] < recipe.solarize_probability),
        )

    @classmethod
    def none(cls, num_images: int) -> Self:
        """Draws of a batch that change nothing."""
        unused_B = torch.zeros(num_images, dtype=torch.bool)
        order_B4, factors_B4 = torch.full((num_images, 4), -1), torch.ones(num_images, 4)
        return cls(order_B4, factors_B4, unused_B, torch.zeros(num_images), unused_B)

    @classmethod
    def stack(cls, draws: list[Self]) -> Self:
        """Join single views' draws to a batch's."""
        return cls(
            **{f.name: torch.stack([getattr(d, f.name) for d in draws]) for f in fields(cls)}
        )

    def to(self, device: torch.device) -> Self:
        """Move to a device."""
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def __getitem__(self, images: slice) -> Self:
        """The draws of some images."""
        return type(self)(**{f.name: getattr(self, f.name)[images] for f in fields(self)})


@torch.no_grad()
def apply(pixels_B3SS: Tensor, draws: Draws, saturated: Saturation = "multiplied") -> Tensor:
    """Turn uint8 views into what the network sees: augmented, normalised float32.

    Args:
        saturated: what the drawn factor does to the saturation.
    """
    images = pixels_B3SS.float().div_(255).contiguous()
    images = _jitter(images, draws, saturation if saturated == "multiplied" else add_saturation)
    _update(images, draws.gray_B, lambda part, _: _luma(part).expand_as(part))
    _update(images, draws.sigma_B > 0, lambda part, rows: blur(part, draws.sigma_B[rows]))
    _update(images, draws.solarize_B, lambda part, _: solarize(part))
    return normalise(images)


def normalise(images_B3HW: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its standard deviation, channel by channel."""
    mean, std = (images_B3HW.new_tensor(v)[:, None, None] for v in (MEAN, STD))
    return (images_B3HW - mean) / std


def _update(images: Tensor, chosen_B: Tensor, operation: Operation) -> None:
    """Apply ``operation(images[rows], rows)`` in place to the chosen rows."""
    rows = chosen_B.nonzero().squeeze(1)
    if len(rows) == len(images):
        images.copy_(operation(images, rows))
    elif len(rows):
        images[rows] = operation(images[rows], rows)


def _jitter(images: Tensor, draws: Draws, saturate: Operation) -> Tensor:
    operations = (brightness, contrast, saturate, hue)
    for position in range(4):
        for index, operation in enumerate(operations):
            chosen_B = draws.order_B4[:, position] == index
            _update(images, chosen_B, partial(_with_factors, operation, draws.factors_B4[:, index]))
    return images


def _with_factors(operation: Operation, factors_B: Tensor, part: Tensor, rows: Tensor) -> Tensor:
    return operation(part, factors_B[rows])


def brightness(images_n3SS: Tensor, factors_n: Tensor) -> Tensor:
    """Multiply by the factor."""
    return (images_n3SS * _column(factors_n)).clamp_(0, 1)


def contrast(images_n3SS: Tensor, factors_n: Tensor) -> Tensor:
    """Blend with the mean luma of the image."""
    mean = _luma(images_n3SS).mean(dim=(1, 2, 3), keepdim=True)
    return mean.lerp(images_n3SS, _column(factors_n)).clamp_(0, 1)


def saturation(images_n3SS: Tensor, factors_n: Tensor) -> Tensor:
    """Blend with the gray image."""
    return _luma(images_n3SS).lerp(images_n3SS, _column(factors_n)).clamp_(0, 1)


def add_saturation(images_n3SS: Tensor, shifts_n: Tensor) -> Tensor:
    """Add to the saturation of HSV; gray pixels turn red.

    The released code's jitter: it takes a factor around 1 for a shift, so that every pixel ends
    with a saturation of at least 0.8.
    """
    high, low = images_n3SS.amax(1, keepdim=True), images_n3SS.amin(1, keepdim=True)
    spread = high - low
    # How far each channel lies below the largest one, as a share of the spread.
    depth = (high - images_n3SS) / spread.clamp(min=1e-12)
    red = depth.new_tensor([0.0, 1.0, 1.0])[:, None, None]
    depth = torch.where(spread > 0, depth, red)
    saturation = spread / high.clamp(min=1e-12)
    return high * (1 - (saturation + _column(shifts_n)).clamp(0, 1) * depth)


def hue(images_n3SS: Tensor, shifts_n: Tensor) -> Tensor:
    """Turn the hue of HSV by a share of the circle; gray pixels stay as they are."""
    red, green, blue = images_n3SS.unbind(1)
    high, low = images_n3SS.amax(1), images_n3SS.amin(1)
    spread = high - low
    safe = spread.clamp(min=1e-12)
    # Sector of the circle in sixths; the order of the cases decides ties, as in HSV itself.
    sextant = torch.where(high == blue, 4 + (red - green) / safe, 0.0)
    sextant = torch.where(high == green, 2 + (blue - red) / safe, sextant)
    sextant = torch.where(high == red, (green - blue) / safe, sextant)
    sextant = sextant + 6 * shifts_n[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        place = (sextant + offset).remainder(6)
        channels.append(high - spread * torch.minimum(place, 4 - place).clamp_(0, 1))
    return torch.stack(channels, dim=1)


def solarize(images: Tensor) -> Tensor:
    """Invert the values from half brightness on."""
    return torch.where(images >= SOLARIZE_THRESHOLD, 1 - images, images)


def blur(images_n3SS: Tensor, sigmas_n: Tensor) -> Tensor:
    """Gaussian blur with reflected borders, each image with its own sigma.

    A banded matrix per image, multiplied from both sides: exact, and one batched product instead of
    a depthwise convolution. Kernel and sigma scale with the crop.
    """
    count, _, size, _ = images_n3SS.shape
    matrix_nSS = _blur_matrices(sigmas_n * size / BLUR_CROP, _blur_radius(size), size)
    rows = images_n3SS.reshape(count, 3 * size, size) @ matrix_nSS.mT
    rows = rows.view(count, 3, size, size).mT.reshape(count, 3 * size, size) @ matrix_nSS.mT
    return rows.view(count, 3, size, size).mT


def _blur_radius(size: int) -> int:
    return max(1, round((BLUR_KERNEL - 1) / 2 * size / BLUR_CROP))


def _blur_matrices(sigmas_n: Tensor, radius: int, size: int) -> Tensor:
    offsets = torch.arange(-radius, radius + 1, device=sigmas_n.device)
    weights_nk = torch.exp(-0.5 * (offsets / sigmas_n[:, None]) ** 2)
    weights_nk = weights_nk / weights_nk.sum(dim=1, keepdim=True)
    source_Sk = (torch.arange(size, device=offsets.device)[:, None] + offsets).abs()
    source_Sk = size - 1 - (size - 1 - source_Sk).abs()
    count, taps = weights_nk.shape
    matrices = weights_nk.new_zeros(count, size, size)
    return matrices.scatter_add_(
        2, source_Sk.expand(count, size, taps), weights_nk[:, None].expand(count, size, taps)
    )


def _luma(images_n3SS: Tensor) -> Tensor:
    weights = images_n3SS.new_tensor(GRAY)[:, None, None]
    return (images_n3SS * weights).sum(dim=1, keepdim=True)


def _column(values_n: Tensor) -> Tensor:
    return values_n[:, None, None, None]
