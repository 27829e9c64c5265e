"""A checkpoint's features of one image, for pictures; prototypes of stored labels.

Shape letters: H x W pixels, h x w cells, N places of a grid row by row, D channels, K labels.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.masks.assign import Metric
from pretrain.masks.features import CellFeatures
from pretrain.masks.kmeans import MIN_NORM
from pretrain.masks.network import read_network
from pretrain.masks.refresh import weights_id
from pretrain.masks.store import MaskError, MaskStore, stored_size
from sslbench.checkpoint import CheckpointError
from sslbench.datasets import ImageList, decode_rgb
from sslbench.resnet import ResNet

LAYERS = ("layer2.2",)  # of masks that no network made


@dataclass(frozen=True)
class PictureFeatures:
    """The features that masks are clustered from, on any grid; of unit length for the cosine."""

    cells: CellFeatures
    metric: Metric

    @classmethod
    def load(cls, checkpoint: Path, store: MaskStore) -> Self:
        """Take the trunk that made a store's masks out of a checkpoint of any known format.

        Raises:
            MaskError: it has other weights; masks that no network made take any.
        """
        metric = store.manifest.get("rule", {}).get("metric", "cosine")
        layers = store.manifest.get("layers", LAYERS)
        network = _network_of(store, checkpoint)
        return cls(CellFeatures(network, layers, metric, torch.float32), metric)

    def of_cells(self, image_HW3: np.ndarray) -> Tensor:
        """Features of the stride-8 cells, (N, D)."""
        return self.cells([torch.from_numpy(image_HW3.copy())])[0]

    def upsampled(self, image_HW3: np.ndarray, grid: tuple[int, int]) -> Tensor:
        """The cells' features bilinearly resized to a finer grid, (N, D)."""
        h, w = stored_size(*image_HW3.shape[:2])
        map_1Dhw = self.of_cells(image_HW3).T.reshape(1, -1, h, w)
        map_1Dhw = F.interpolate(map_1Dhw, grid, mode="bilinear", align_corners=False)
        rows_ND = map_1Dhw[0].flatten(1).T
        return _unit(rows_ND) if self.metric == "cosine" else rows_ND

    def prototypes(self, store: MaskStore, images: ImageList, index: int) -> Tensor:
        """Mean direction of each label over the image's whole group, unit rows (K, D).

        This is what the last step of k-means by cosine makes of the stored labels, so prototypes
        need not be stored; a label without a cell gets a row of zeros.
        """
        assert self.metric == "cosine", "Wanted refuses this"
        points, labels = [], []
        for member in store.group_of(index):
            image_HW3 = decode_rgb(images.read(member), images.name(member))
            points.append(self.of_cells(image_HW3))
            labels.append(torch.from_numpy(store.read(member).astype(np.int64)).flatten())
        sums_KD = points[0].new_zeros(store.clusters(index), points[0].shape[1])
        return _unit(sums_KD.index_add_(0, torch.cat(labels), torch.cat(points)))


def _network_of(store: MaskStore, checkpoint: Path) -> ResNet:
    """The online trunk, from which a run's masks come, or the target where ``make`` read that."""
    networks = {"online": read_network(checkpoint)}
    with contextlib.suppress(CheckpointError):  # many files have one branch
        networks["target"] = read_network(checkpoint, "target")
    wanted = store.manifest.get("backbone")
    found = {branch: weights_id(network) for branch, network in networks.items()}
    for branch, weights in found.items():
        if wanted in (None, weights):
            return networks[branch]
    told = ", ".join(f"{weights} in its {branch} branch" for branch, weights in found.items())
    raise MaskError(
        f"{checkpoint} has other weights than the masks in {store.folder} come from: {told}, not "
        f"{wanted}. {_way_out(store.manifest.get('epoch', 0) - 1)}"
    )


def _way_out(trained: int) -> str:
    """What to do, by the epochs after which masks were made; -1: outside a pretraining."""
    if trained == 0:
        return "Leave --checkpoint out: nothing is saved before the first epoch"
    if trained < 0:
        return "Give the checkpoint that they were made with, or leave --checkpoint out"
    return (
        f"Give the run's state after epoch {trained} (schedule.keep_epochs=[{trained}] keeps it), "
        "or leave --checkpoint out"
    )


def _unit(rows_ND: Tensor) -> Tensor:
    return F.normalize(rows_ND, dim=1, eps=MIN_NORM)
