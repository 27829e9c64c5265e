"""What a frozen trunk says of an image: the centre crop's last map, averaged, of unit length.

Shape letters: B images, C channels, H x W pixels, G = grid * grid cells.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sslbench.datasets import decode_rgb
from sslbench.resnet import PIXEL_MEAN, PIXEL_STD, ResNet

LAYER = "layer4"


class FeatureError(ValueError):
    """Features that cannot be used."""


class CentreCrops(Dataset[Tensor]):
    """The centre squares of images, (3, crop, crop) uint8 RGB.

    Args:
        resize: pixels of the shorter side before the crop.
    """

    def __init__(self, paths: Sequence[Path], resize: int, crop: int) -> None:
        self.paths, self.resize, self.crop = paths, resize, crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        path = self.paths[index]
        pixels_HWC = decode_rgb(path.read_bytes(), str(path))
        square = centre_crop(Image.fromarray(pixels_HWC), self.resize, self.crop)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def centre_crop(image: Image.Image, resize: int, crop: int) -> Image.Image:
    """Bring the shorter side to ``resize`` (bilinear, antialiased) and cut out the centre."""
    width, height = image.size
    shorter = min(width, height)
    size = (resize * width // shorter, resize * height // shorter)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    return image.crop((left, top, left + crop, top + crop))


def pool(maps_BCHW: Tensor, grid: int) -> Tensor:
    """Average to ``grid`` x ``grid`` cells, flatten channel by channel, divide by the l2 norm."""
    cells_BCG = F.adaptive_avg_pool2d(maps_BCHW, grid).flatten(2)
    return F.normalize(cells_BCG.flatten(1), dim=1)


@torch.no_grad()
def crop_maps(network: ResNet, pixels_BCHW: Tensor) -> Tensor:
    """Last maps of some crops, (B, C, H, W), where the network is.

    Args:
        network: in eval mode.
        pixels_BCHW: uint8, from ``CentreCrops``.

    Raises:
        FeatureError: a feature is not finite.
    """
    weight = network.conv1.weight
    pixels_BCHW = pixels_BCHW.to(weight.device, weight.dtype)
    mean, std = (weight.new_tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    maps_BCHW = network.maps((pixels_BCHW - mean) / std, (LAYER,))[LAYER]
    if not torch.isfinite(maps_BCHW).all():
        raise FeatureError(
            "the network gives NaN or infinite features; its weights or statistics are broken. "
            "'python -m transfer inspect' describes the checkpoint"
        )
    return maps_BCHW


def crop_features(network: ResNet, pixels_BCHW: Tensor, grid: int) -> Tensor:
    """Features of some crops, (B, C * G), where the network is.

    Args:
        network: in eval mode.
        pixels_BCHW: uint8, from ``CentreCrops``.

    Raises:
        FeatureError: a feature is not finite.
    """
    return pool(crop_maps(network, pixels_BCHW), grid)
