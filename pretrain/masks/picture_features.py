"""A checkpoint's features of one image, for pictures; prototypes of stored labels.

Shape letters: H x W pixels, h x w cells, N places of a grid row by row, D channels, K labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.masks.features import CellFeatures
from pretrain.masks.kmeans import MIN_NORM
from pretrain.masks.store import MaskStore, stored_size
from sslbench.checkpoint import load_backbone
from sslbench.datasets import ImageList, decode_rgb

LAYERS = ("layer2.2",)  # of masks that no network made


@dataclass(frozen=True)
class PictureFeatures:
    """The features that masks are clustered from, on any grid."""

    cells: CellFeatures

    @classmethod
    def load(cls, checkpoint: Path, layers: Sequence[str]) -> Self:
        """Take the online trunk out of a checkpoint of any known format."""
        network = load_backbone(checkpoint).build()
        return cls(CellFeatures(network, layers, "cosine", torch.float32))

    def of_cells(self, image_HW3: np.ndarray) -> Tensor:
        """Unit features of the stride-8 cells, (N, D)."""
        return self.cells([torch.from_numpy(image_HW3.copy())])[0]

    def upsampled(self, image_HW3: np.ndarray, grid: tuple[int, int]) -> Tensor:
        """The cells' features bilinearly resized to a finer grid, scaled to unit length, (N, D)."""
        h, w = stored_size(*image_HW3.shape[:2])
        map_1Dhw = self.of_cells(image_HW3).T.reshape(1, -1, h, w)
        map_1Dhw = F.interpolate(map_1Dhw, grid, mode="bilinear", align_corners=False)
        return _unit(map_1Dhw[0].flatten(1).T)

    def prototypes(self, store: MaskStore, images: ImageList, index: int) -> Tensor:
        """Mean direction of each label over the image's whole group, unit rows (K, D).

        This is what the last step of k-means makes of the stored labels, so prototypes need not be
        stored; a label without a cell gets a row of zeros.
        """
        points, labels = [], []
        for member in store.group_of(index):
            image_HW3 = decode_rgb(images.read(member), images.name(member))
            points.append(self.of_cells(image_HW3))
            labels.append(torch.from_numpy(store.read(member).astype(np.int64)).flatten())
        sums_KD = points[0].new_zeros(store.clusters(index), points[0].shape[1])
        return _unit(sums_KD.index_add_(0, torch.cat(labels), torch.cat(points)))


def _unit(rows_ND: Tensor) -> Tensor:
    return F.normalize(rows_ND, dim=1, eps=MIN_NORM)
