"""How well the features of a trunk tell classes apart: k-NN on a small labelled set, in seconds.

>>> knn_of_checkpoint(Path("last.pt"), DataRoots(Path("data")), "voc2007/train", "voc2007/val")

Shape letters: N images, D feature size.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from sslbench import dist
from sslbench.checkpoint import load_backbone
from sslbench.datasets import DataError, DataRoots, ImageLabels, labelled_splits
from sslbench.features import CentreCrops, crop_features
from sslbench.knn import Vote, classes_on_both_sides, mean_average_precision
from sslbench.loading import start_loading
from sslbench.log import Progress, progress
from sslbench.resnet import ResNet
from sslbench.rng import torch_generator

BATCH = 64  # images at a time


@dataclass(frozen=True)
class KNNProbe:
    """Labelled images, half of them to vote and half to be voted on.

    Args:
        resize: pixels of the shorter side, before ``crop`` is cut from the centre.
    """

    train: ImageLabels
    test: ImageLabels
    resize: int
    crop: int
    vote: Vote

    @classmethod
    def load(
        cls, train: str, test: str, roots: DataRoots, *, resize: int, crop: int, vote: Vote
    ) -> Self:
        """Read the labels of two splits and make sure that a probe of them can succeed.

        Raises:
            DataError: a split is missing, has no labels, or is too small.
        """
        sides = labelled_splits(train, test, roots)
        if vote.neighbours > len(sides[0].paths):
            raise DataError(
                f"{vote.neighbours} neighbours are asked of the {len(sides[0].paths)} images of "
                f"{train}; ask for fewer, or take a larger split"
            )
        if not classes_on_both_sides(*(torch.from_numpy(side.matrix) for side in sides)):
            raise DataError(f"no class is shown by an image of both {train} and {test}")
        return cls(*sides, resize, crop, vote)

    def measure(self, network: ResNet, num_workers: int = 0) -> float:
        """Mean average precision in percent; every process does its share, all get the value.

        The network is used in eval mode and left as it was; no global generator is drawn from.
        """
        paths = (self.train.paths, self.test.paths)
        share = sum(len(self._own(len(side))) for side in paths)
        with in_eval_mode(network), progress(share, "k-NN probe") as bar:
            features = [self._features(network, side, num_workers, bar) for side in paths]
        labels = [torch.from_numpy(side.matrix) for side in (self.train, self.test)]
        return 100 * mean_average_precision(
            features[0], labels[0], features[1], labels[1], self.vote
        )

    def _features(
        self, network: ResNet, paths: Sequence[Path], num_workers: int, bar: Progress
    ) -> Tensor:
        """Features of all images in order, (N, D), of which this process computed its share."""
        own = CentreCrops([paths[i] for i in self._own(len(paths))], self.resize, self.crop)
        # without a generator of its own, a loader draws a seed from the global one
        generator = torch_generator(0, "probe loader")
        parts = []
        settings = {"batch_size": BATCH, "num_workers": num_workers, "generator": generator}
        for pixels in start_loading(own, **settings):
            parts.append(crop_features(network, pixels, grid=1))
            bar.advance(len(pixels))
        gathered = dist.all_gather(torch.cat(parts))
        by_rank = gathered.view(dist.world_size(), -1, gathered.shape[1])
        return by_rank.transpose(0, 1).reshape(gathered.shape)[: len(paths)]

    @staticmethod
    def _own(count: int) -> list[int]:
        """Every so many-th image, as many for each process: the first ones fill up the last row."""
        world = dist.world_size()
        rows = math.ceil(count / world)
        return [index % count for index in range(dist.rank(), rows * world, world)]


@contextlib.contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Let BatchNorm use its statistics within the block, and leave them alone."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def knn_of_checkpoint(
    path: Path,
    roots: DataRoots,
    train: str,
    test: str,
    *,
    resize: int = 256,
    crop: int = 224,
    branch: str = "online",
    vote: Vote | None = None,
    device: str = "cpu",
    num_workers: int = 0,
) -> float:
    """Mean average precision in percent of any known checkpoint's trunk.

    Args:
        train, test: specs of labelled splits, as ``voc2007/train``.
        vote: by default 20 neighbours at temperature 0.07.
    """
    probe = KNNProbe.load(train, test, roots, resize=resize, crop=crop, vote=vote or Vote())
    return probe.measure(load_backbone(path, branch).build().to(device), num_workers)
