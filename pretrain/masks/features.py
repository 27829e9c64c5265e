"""What masks are clustered from: a feature vector of every stride-8 cell of whole images.

The trunk computes as fast as it can without learning: BatchNorm folded into the convolutions,
channels-last, nothing beyond the deepest layer, images of one size together on a GPU.

Shape letters: H x W pixels, h x w cells, D channels, N = h * w cells of an image, B images.
"""

import copy
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pretrain.masks.assign import Metric
from pretrain.masks.kmeans import MIN_NORM
from pretrain.masks.store import stored_size
from pretrain.photometry import normalise
from sslbench.resnet import ResNet, resolve_layer

MOST_PIXELS = 16 * 640 * 480  # of a batch on a GPU


def folded(backbone: ResNet) -> ResNet:
    """Copy a trunk for inference: every BatchNorm becomes part of the convolution before it."""
    trunk = copy.deepcopy(backbone).eval()
    for parent in list(trunk.modules()):
        children = list(parent.named_children())
        for (name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return trunk.requires_grad_(False).to(memory_format=torch.channels_last)


class CellFeatures:
    """Computes the cells' features of images of any sizes.

    Several layers are each resized to the stride-8 grid and, for k-means by cosine, scaled to unit
    length, then joined.

    Args:
        backbone: copied; its later changes have no effect.
        dtype: of the convolutions; everything after them is at least float32.
    """

    def __init__(
        self, backbone: ResNet, layers: Sequence[str], metric: Metric, dtype: torch.dtype
    ) -> None:
        self.trunk = folded(backbone).to(dtype)
        self.dtype, self.is_unit = dtype, metric == "cosine"
        self.device = self.trunk.conv1.weight.device
        self.layers = [resolve_layer(layer, backbone.depth) for layer in layers]

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Features of each image, (N, D); on a CPU the same for any number of threads.

        Args:
            images: uint8 (H, W, 3), RGB.
        """
        return self._one_by_one(images) if self.device.type == "cpu" else self._in_batches(images)

    def _one_by_one(self, images: Sequence[Tensor]) -> list[Tensor]:
        """A thread for each image: several for one convolution would round in their own way."""
        threads = torch.get_num_threads()
        alone = {"initializer": torch.set_num_threads, "initargs": (1,)}
        try:
            with ThreadPoolExecutor(min(threads, len(images)), **alone) as pool:
                return list(pool.map(lambda image: self._batch(image[None])[0], images))
        finally:
            torch.set_num_threads(threads)  # MKL has one number for all

    def _in_batches(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Images of one size together."""
        found: dict[int, Tensor] = {}
        for batch in self._batches([tuple(image.shape[:2]) for image in images]):
            pixels_BHW3 = torch.stack([images[place] for place in batch]).to(self.device)
            found |= dict(zip(batch, self._batch(pixels_BHW3), strict=True))
        return [found[place] for place in range(len(images))]

    def _batches(self, sizes: Sequence[tuple[int, ...]]) -> list[list[int]]:
        """Places of images that go through together."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for place, size in enumerate(sizes):
            alike.setdefault(size, []).append(place)
        batches = []
        for (height, width), places in alike.items():
            most = max(1, MOST_PIXELS // (height * width))
            batches += [places[start : start + most] for start in range(0, len(places), most)]
        return batches

    @torch.no_grad()
    def _batch(self, pixels_BHW3: Tensor) -> Tensor:
        """Features of images of one size, (B, N, D)."""
        grid = stored_size(*pixels_BHW3.shape[1:3])
        # a channels-last picture already lies in memory as the decoder left it
        images_B3HW = normalise(pixels_BHW3.permute(0, 3, 1, 2).float() / 255).to(self.dtype)
        maps = self.trunk.maps(images_B3HW, self.layers)
        rows = [self._rows(maps[layer], grid) for layer in self.layers]
        return rows[0] if len(rows) == 1 else self._scaled(torch.cat(rows, dim=2))

    def _rows(self, map_BDhw: Tensor, grid: tuple[int, int]) -> Tensor:
        map_BDhw = map_BDhw.to(torch.promote_types(map_BDhw.dtype, torch.float32))
        if tuple(map_BDhw.shape[-2:]) != grid:
            map_BDhw = F.interpolate(map_BDhw, grid, mode="bilinear", align_corners=False)
        return self._scaled(map_BDhw.permute(0, 2, 3, 1).flatten(1, 2))

    def _scaled(self, rows_BND: Tensor) -> Tensor:
        return F.normalize(rows_BND, dim=2, eps=MIN_NORM) if self.is_unit else rows_BND
