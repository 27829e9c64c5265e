"""Bootstrapping (paper Algorithm 1): cluster the online network's own features into new masks.

Images enter at their own resolution and leave as one label per 8x8 pixels. Groups of images are
clustered together. Each group is finished by itself and kept, so a killed refresh continues, and
its result depends neither on the number of processes nor on where it was interrupted.

Shape letters: H x W pixels, h x w cells, D channels, N cells of all images of a group.
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.masks.kmeans import MIN_NORM, PointsError, spherical_kmeans
from pretrain.masks.store import MaskEntry, MaskStore, stored_size, write_store
from pretrain.photometry import normalise
from sslbench import dist
from sslbench.datasets import ImageList, decode_rgb
from sslbench.files import atomic_path, read_json, write_json
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
    parts_dir = folder.with_name(f"{folder.name}.partial")
    if not _is_made(folder, manifest):
        if dist.is_main():
            _prepare_parts(parts_dir, manifest)
        dist.barrier()
        groups = image_groups(len(images), settings)
        _cluster_groups(backbone, images, groups, parts_dir, settings, log)
        dist.barrier()
        if dist.is_main():
            write_store(folder, _in_image_order(parts_dir, len(groups)), manifest)
        dist.barrier()
    if dist.is_main() and parts_dir.exists():  # also those that a kill left while they went
        shutil.rmtree(parts_dir)
    return MaskStore(folder, images_id)


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


def _is_made(folder: Path, manifest: dict[str, Any]) -> bool:
    path = folder / "manifest.json"
    wanted = _as_json(manifest)
    return path.exists() and wanted.items() <= read_json(path).items()


def _as_json(manifest: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in manifest.items()}


def _prepare_parts(parts_dir: Path, manifest: dict[str, Any]) -> None:
    """Keep an interrupted refresh's parts only if the same network and settings made them."""
    path = parts_dir / "manifest.json"
    if parts_dir.exists() and not (path.exists() and read_json(path) == _as_json(manifest)):
        shutil.rmtree(parts_dir)
    parts_dir.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_json(path, _as_json(manifest))


def _part_path(parts_dir: Path, group: int) -> Path:
    return parts_dir / f"group_{group:06d}.npz"


@torch.no_grad()
def _cluster_groups(
    backbone: ResNet,
    images: ImageList,
    groups: list[np.ndarray],
    parts_dir: Path,
    settings: Bootstrap,
    log: RunLog,
) -> None:
    was_training = backbone.training
    backbone.eval()
    mine = range(dist.rank(), len(groups), dist.world_size())
    missing = [group for group in mine if not _part_path(parts_dir, group).exists()]
    label = f"masks for epoch {settings.epoch}"
    with log.progress(len(mine), label, initial=len(mine) - len(missing)) as bar:
        for group in missing:
            part = cluster_group(backbone, images, groups[group], group, settings)
            with atomic_path(_part_path(parts_dir, group)) as scratch, scratch.open("wb") as file:
                np.savez(file, **part)
            bar.advance()
    backbone.train(was_training)


def cluster_group(
    backbone: ResNet, images: ImageList, members: np.ndarray, group: int, settings: Bootstrap
) -> dict[str, Any]:
    """Cluster the cells of one group of images together.

    Returns:
        image indices, image sizes, K, and all labels in a row: the arrays of a part file.
    """
    features, sizes = [], []
    for index in members:
        image_HW3 = decode_rgb(images.read(int(index)), images.name(int(index)))
        features.append(_cell_features(backbone, image_HW3, settings.layers))
        sizes.append(image_HW3.shape[:2])
        if not bool(torch.isfinite(features[-1]).all()):
            raise PointsError(
                f"{images.name(int(index))}: its features are not finite; the network has diverged"
            )
    points_ND = torch.cat(features)
    made = spherical_kmeans(
        points_ND,
        num_clusters(settings, group),
        torch_generator(settings.seed, "mask kmeans", settings.epoch, group),
        settings.iterations,
    )
    return {
        "members": np.asarray(members, np.int64),
        "sizes": np.array(sizes, np.int32),
        "clusters": len(made.centers_KD),
        "labels": made.labels_N.cpu().numpy().astype(np.uint8),
    }


def _cell_features(backbone: ResNet, image_HW3: np.ndarray, layers: tuple[str, ...]) -> Tensor:
    """Unit feature vector of every stride-8 cell of an image, (h*w, D).

    Several layers are each resized to the grid and scaled to unit length, then joined.
    """
    device = next(backbone.parameters()).device
    pixels_13HW = torch.from_numpy(image_HW3.copy()).to(device).permute(2, 0, 1)[None].float() / 255
    names = [resolve_layer(layer, backbone.depth) for layer in layers]
    maps = backbone.maps(normalise(pixels_13HW), names)
    grid = stored_size(*image_HW3.shape[:2])
    rows = []
    for name in names:
        map_1Dhw = maps[name]
        if tuple(map_1Dhw.shape[-2:]) != grid:
            map_1Dhw = F.interpolate(map_1Dhw, grid, mode="bilinear", align_corners=False)
        rows.append(F.normalize(map_1Dhw[0].flatten(1).T.float(), dim=1, eps=MIN_NORM))
    return F.normalize(torch.cat(rows, dim=1), dim=1, eps=MIN_NORM)


def _in_image_order(parts_dir: Path, num_groups: int) -> Iterator[MaskEntry]:
    entries: dict[int, MaskEntry] = {}
    for group in range(num_groups):
        with np.load(_part_path(parts_dir, group)) as part:
            entries |= _entries_of_part(group, part)
    for index in range(len(entries)):
        yield entries[index]


def _entries_of_part(group: int, part: Any) -> dict[int, MaskEntry]:
    labels, clusters = part["labels"], int(part["clusters"])
    entries, start = {}, 0
    for index, (height, width) in zip(
        part["members"].tolist(), part["sizes"].tolist(), strict=True
    ):
        h, w = stored_size(height, width)
        cut = labels[start : start + h * w].reshape(h, w)
        entries[index] = MaskEntry(cut, height, width, clusters, group)
        start += h * w
    return entries
