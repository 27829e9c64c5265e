"""Bootstrapping (paper Algorithm 1): cluster the online network's own features into new masks.

Images enter at their own resolution and leave as one label per 8x8 pixels. Groups of images are
clustered together. Each group is finished by itself and kept, so a killed refresh continues, and
its result depends neither on the number of processes nor on where it was interrupted.

Shape letters: H x W pixels, h x w cells, D channels, N cells of all images of a group.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.masks.cells import cell_colours
from pretrain.masks.crf import refine
from pretrain.masks.kmeans import MIN_NORM, Metric, PointsError, kmeans
from pretrain.masks.parts import Part, make_in_parts
from pretrain.masks.store import MaskEntry, MaskStore, stored_size
from pretrain.photometry import normalise
from sslbench.datasets import ImageList, decode_rgb
from sslbench.log import RunLog
from sslbench.resnet import ResNet, resolve_layer
from sslbench.rng import numpy_generator, torch_generator


@dataclass(frozen=True)
class Bootstrap:
    """What decides the masks, apart from images and weights."""

    layers: tuple[str, ...]
    min_clusters: int
    max_clusters: int
    images_per_clustering: int
    iterations: int
    seed: int
    epoch: int
    metric: Metric = "cosine"
    refine: Literal["none", "crf"] = "none"


def refresh(
    backbone: ResNet,
    images: ImageList,
    images_id: str,
    folder: Path,
    settings: Bootstrap,
    log: RunLog,
) -> MaskStore:
    """Make the mask generation ``folder``, or finish or reuse what an interrupted run left of it.

    Args:
        backbone: the online trunk; used in eval mode and left in the mode it came in.
        images_id: identity of the image list.
    """
    manifest = {
        "source": "kmeans",
        "images_id": images_id,
        "backbone": weights_id(backbone),
        **asdict(settings),
    }
    groups = image_groups(len(images), settings)

    def make(numbers: Sequence[int]) -> Iterator[Part]:
        for group in numbers:
            yield cluster_group(backbone, images, groups[group], group, settings)

    was_training = backbone.training
    backbone.eval()
    label = f"masks for epoch {settings.epoch}"
    store = make_in_parts(folder, manifest, len(groups), make, label, log)
    backbone.train(was_training)
    return store


def weights_id(module: nn.Module) -> str:
    """Hash of all weights and BatchNorm statistics."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def image_groups(num_images: int, settings: Bootstrap) -> list[np.ndarray]:
    """Cut a permutation of the images, drawn for this epoch, into groups of two and more."""
    generator = numpy_generator(settings.seed, "mask groups", settings.epoch)
    order = generator.permutation(num_images)
    size = settings.images_per_clustering
    groups = [order[start : start + size] for start in range(0, num_images, size)]
    if len(groups) > 1 and len(groups[-1]) == 1:
        groups[-2:] = [np.concatenate(groups[-2:])]
    return groups


def num_clusters(settings: Bootstrap, group: int) -> int:
    """K of a group, uniform over the range with both ends."""
    generator = numpy_generator(settings.seed, "mask clusters", settings.epoch, group)
    return int(generator.integers(settings.min_clusters, settings.max_clusters + 1))


@torch.no_grad()
def cluster_group(
    backbone: ResNet, images: ImageList, members: np.ndarray, group: int, settings: Bootstrap
) -> Part:
    """Cluster the cells of one group of images together; refine each image's labels if asked."""
    cells = [_read_cells(backbone, images, index, settings) for index in members.tolist()]
    made = kmeans(
        torch.cat([image.points_ND for image in cells]),
        num_clusters(settings, group),
        torch_generator(settings.seed, "mask kmeans", settings.epoch, group),
        settings.iterations,
        settings.metric,
    )
    all_labels = made.labels_N.split([len(image.points_ND) for image in cells])
    part: Part = {}
    for index, image, labels_N in zip(members.tolist(), cells, all_labels, strict=True):
        if image.colours_hw3 is not None:
            labels_N = refine(image.points_ND, made.centers_KD, labels_N, image.colours_hw3)
        labels_hw = labels_N.reshape(stored_size(*image.size)).cpu().numpy().astype(np.uint8)
        part[index] = MaskEntry(labels_hw, *image.size, len(made.centers_KD), group)
    return part


@dataclass(frozen=True)
class _Cells:
    """One image as k-means sees it."""

    size: tuple[int, int]  # (height, width) in pixels
    points_ND: Tensor
    colours_hw3: Tensor | None  # mean colours, where labels are refined by them


def _read_cells(backbone: ResNet, images: ImageList, index: int, settings: Bootstrap) -> _Cells:
    image_HW3 = decode_rgb(images.read(index), images.name(index))
    points_ND = _cell_features(backbone, image_HW3, settings)
    if not bool(torch.isfinite(points_ND).all()):
        raise PointsError(
            f"{images.name(index)}: its features are not finite; the network has diverged"
        )
    colours_hw3 = None
    if settings.refine == "crf":
        colours_hw3 = torch.from_numpy(cell_colours(image_HW3)).to(points_ND)
    return _Cells((image_HW3.shape[0], image_HW3.shape[1]), points_ND, colours_hw3)


def _cell_features(backbone: ResNet, image_HW3: np.ndarray, settings: Bootstrap) -> Tensor:
    """Feature vector of every stride-8 cell of an image, (h*w, D).

    Several layers are each resized to the grid and, for k-means by cosine, scaled to unit length,
    then joined.
    """
    device = next(backbone.parameters()).device
    pixels_13HW = torch.from_numpy(image_HW3.copy()).to(device).permute(2, 0, 1)[None].float() / 255
    names = [resolve_layer(layer, backbone.depth) for layer in settings.layers]
    maps = backbone.maps(normalise(pixels_13HW), names)
    grid = stored_size(*image_HW3.shape[:2])
    rows = []
    for name in names:
        map_1Dhw = maps[name]
        if tuple(map_1Dhw.shape[-2:]) != grid:
            map_1Dhw = F.interpolate(map_1Dhw, grid, mode="bilinear", align_corners=False)
        row_ND = map_1Dhw[0].flatten(1).T.float()
        rows.append(row_ND if settings.metric == "euclidean" else _unit(row_ND))
    points_ND = torch.cat(rows, dim=1)
    return points_ND if settings.metric == "euclidean" else _unit(points_ND)


def _unit(rows_ND: Tensor) -> Tensor:
    return F.normalize(rows_ND, dim=1, eps=MIN_NORM)
