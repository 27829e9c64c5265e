"""Frozen features of images: the last map, averaged to a small grid, of unit length.

Shape letters: B images, C channels, H x W pixels, G = grid * grid cells.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sslbench.datasets import decode_rgb
from sslbench.files import atomic_path
from sslbench.log import RunLog
from sslbench.resnet import PIXEL_MEAN, PIXEL_STD, ResNet

LAYER = "layer4"
BATCHES_PER_PART = 16  # a kill costs at most so many batches

Features = npt.NDArray[np.float32]


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
def extract(
    network: ResNet,
    crops: CentreCrops,
    folder: Path,
    *,
    grid: int,
    batch_size: int,
    device: str,
    num_workers: int,
    log: RunLog,
) -> Features:
    """Compute the features of all images, keeping finished parts in ``folder``.

    Parts hold whole batches, so that a continued run puts the same images together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    step = batch_size * BATCHES_PER_PART
    starts = range(0, len(crops), step)
    network = network.to(device).eval()
    parts = []
    with log.progress(len(crops), f"features of {folder.name}") as bar:
        for start in starts:
            path = folder / f"{start:07d}.npy"
            if not path.exists():
                chosen = range(start, min(start + step, len(crops)))
                subset = CentreCrops([crops.paths[i] for i in chosen], crops.resize, crops.crop)
                loader = DataLoader(subset, batch_size, num_workers=num_workers)
                part = [_forward(network, batch, grid, device) for batch in loader]
                _save(path, np.concatenate(part))
            parts.append(np.load(path))
            bar.advance(len(parts[-1]))
    return np.concatenate(parts)


def _forward(network: ResNet, pixels_BCHW: Tensor, grid: int, device: str) -> Features:
    pixels_BCHW = pixels_BCHW.to(device).float()
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    maps = network.maps((pixels_BCHW - mean) / std, (LAYER,))
    features = pool(maps[LAYER], grid)
    if not torch.isfinite(features).all():
        raise FeatureError(
            "the network gives NaN or infinite features; its weights or statistics are broken. "
            "'python -m transfer inspect' describes the checkpoint"
        )
    found: Features = features.cpu().numpy()
    return found


def _save(path: Path, features: Features) -> None:
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        np.save(file, features)


def state_digest(state: Mapping[str, Tensor] | nn.Module) -> str:
    """Hash every parameter and buffer, to show that frozen means frozen."""
    tensors = state.state_dict() if isinstance(state, nn.Module) else state
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
