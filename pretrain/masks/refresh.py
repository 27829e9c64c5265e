"""Bootstrapping (paper Algorithm 1): cluster the online network's own features into new masks.

Images enter at their own resolution and leave as one label per 8x8 pixels. Groups of images are
clustered together. Each group is finished by itself and kept, so a killed refresh continues, and
its result depends neither on the number of processes nor on where it was interrupted.

Shape letters: H x W pixels, h x w cells, D channels, N cells of all images of a group.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.config import MAX_IDS, MaskConfig
from pretrain.masks.cells import cell_colours
from pretrain.masks.crf import refine
from pretrain.masks.features import CellFeatures
from pretrain.masks.kmeans import KMeans, PointsError, is_finite, kmeans
from pretrain.masks.parts import Part, Shows, make_in_parts
from pretrain.masks.store import MaskEntry, MaskStore, stored_size
from sslbench.datasets import ImageList, decode_rgb
from sslbench.loading import made_ahead
from sslbench.resnet import ResNet
from sslbench.rng import numpy_generator, torch_generator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Bootstrap:
    """What decides the masks, apart from images and weights."""

    layers: tuple[str, ...]
    min_clusters: int
    max_clusters: int
    images_per_clustering: int
    seed: int
    epoch: int  # before which the masks are made; 0: outside a pretraining
    rule: KMeans = field(default_factory=KMeans)
    refine: Literal["none", "crf"] = "none"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the network

    def __post_init__(self) -> None:
        """Refuse a K that no stored label can tell."""
        if not 1 <= self.min_clusters <= self.max_clusters <= MAX_IDS:
            raise ValueError(
                f"min_clusters {self.min_clusters} and max_clusters {self.max_clusters}: give a "
                f"range within 1..{MAX_IDS}, for a stored label is one byte"
            )

    @classmethod
    def build(
        cls, masks: MaskConfig, *, seed: int, epoch: int, precision: Literal["fp32", "bf16"]
    ) -> Self:
        """Read a config's keys."""
        return cls(
            layers=masks.layers,
            min_clusters=masks.min_clusters,
            max_clusters=masks.max_clusters,
            images_per_clustering=masks.images_per_clustering,
            seed=seed,
            epoch=epoch,
            rule=KMeans.build(masks),
            refine=masks.refine,
            precision=precision,
        )


def refresh(
    backbone: ResNet,
    images: ImageList,
    images_id: str,
    folder: Path,
    settings: Bootstrap,
    log: Shows,
    num_workers: int = 0,
) -> MaskStore:
    """Make the mask generation ``folder``, or finish or reuse what an interrupted run left of it.

    Args:
        backbone: the online trunk; used as in eval mode, and not touched.
        images_id: identity of the image list.
        num_workers: processes that decode images ahead.
    """
    manifest = manifest_of(backbone, images_id, settings)
    groups = image_groups(len(images), settings)
    features = CellFeatures(
        backbone, settings.layers, settings.rule.metric, DTYPES[settings.precision]
    )

    def make(numbers: Sequence[int]) -> Iterator[Part]:
        members = [groups[number] for number in numbers]
        pictures = made_ahead(_Decoder(images), members, num_workers)
        for number, own, decoded in zip(numbers, members, pictures, strict=True):
            names = [images.name(index) for index in own.tolist()]
            maps = cluster_group(features, decoded, names, number, settings)
            yield dict(zip(own.tolist(), maps, strict=True))

    label = f"masks for epoch {settings.epoch}" if settings.epoch else "masks (kmeans)"
    return make_in_parts(folder, manifest, len(groups), make, label, log)


def manifest_of(backbone: ResNet, images_id: str, settings: Bootstrap) -> dict[str, Any]:
    """All that decides the masks, as their manifest tells it."""
    decided = asdict(settings)
    if settings.rule.fit_every == 1:
        del decided["rule"]["fit_every"]  # so that masks from before there was the key stay valid
    return {
        "source": "kmeans",
        "images_id": images_id,
        "backbone": weights_id(backbone),
        **decided,
    }


def weights_id(module: nn.Module) -> str:
    """Hash of all weights and BatchNorm statistics."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def image_groups(num_images: int, settings: Bootstrap) -> list[np.ndarray]:
    """Cut a permutation of the images, drawn for this epoch, into groups.

    An image that remains alone joins the group before, unless all images are clustered alone.
    """
    generator = numpy_generator(settings.seed, "mask groups", settings.epoch)
    order = generator.permutation(num_images)
    size = settings.images_per_clustering
    groups = [order[start : start + size] for start in range(0, num_images, size)]
    if len(groups) > 1 and len(groups[-1]) == 1 < size:
        groups[-2:] = [np.concatenate(groups[-2:])]
    return groups


def num_clusters(settings: Bootstrap, group: int) -> int:
    """K of a group, uniform over the range with both ends."""
    generator = numpy_generator(settings.seed, "mask clusters", settings.epoch, group)
    return int(generator.integers(settings.min_clusters, settings.max_clusters + 1))


@torch.no_grad()
def cluster_group(
    features: CellFeatures,
    pictures: Sequence[Tensor],
    names: Sequence[str],
    group: int,
    settings: Bootstrap,
) -> list[MaskEntry]:
    """Cluster the cells of one group of images together; refine each image's labels if asked.

    Args:
        pictures: uint8 (H, W, 3) each.
        names: of the pictures, for errors.
    """
    points = features(pictures)
    for name, points_ND in zip(names, points, strict=True):
        if not is_finite(points_ND):
            raise PointsError(f"{name}: its features are not finite; the network has diverged")
    made = kmeans(
        torch.cat(points),
        num_clusters(settings, group),
        torch_generator(settings.seed, "mask kmeans", settings.epoch, group),
        settings.rule,
    )
    entries = []
    all_labels = made.labels_N.split([len(points_ND) for points_ND in points])
    for picture_HW3, points_ND, labels_N in zip(pictures, points, all_labels, strict=True):
        if settings.refine == "crf":
            colours_hw3 = torch.from_numpy(cell_colours(picture_HW3.numpy())).to(points_ND)
            labels_N = refine(points_ND, made.centers_KD, labels_N, colours_hw3)
        size = (picture_HW3.shape[0], picture_HW3.shape[1])
        labels_hw = labels_N.reshape(stored_size(*size)).to(torch.uint8).cpu().numpy()
        entries.append(MaskEntry(labels_hw, *size, len(made.centers_KD), group))
    return entries


@dataclass(frozen=True)
class _Decoder:
    """Decodes groups of images."""

    images: ImageList

    def __call__(self, members: np.ndarray) -> list[Tensor]:
        """Pictures, uint8 (H, W, 3) each."""
        return [self._picture(index) for index in members.tolist()]

    def _picture(self, index: int) -> Tensor:
        return torch.from_numpy(decode_rgb(self.images.read(index), self.images.name(index)).copy())
