"""The content id of a data set: changes with its images and annotations, not with place or time."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from sslbench.datasets import coco, lvis, segments, voc
from sslbench.datasets.images import ImageList, images_id, index_folder
from sslbench.datasets.roots import DataError


def voc_id(dataset: str, split: str, folder: Path) -> str:
    """Hash the split's images, its classes, and the bytes of its XML and list files."""
    paths = voc.image_paths(dataset, split, folder)
    boxes = [folder / "Annotations" / f"{path.stem}.xml" for path in paths]
    # Another split's lists may name the classes, and so number them.
    classes = ",".join(voc.class_names(folder, split))
    lists = voc.class_list_paths(folder, split).values()
    return _combine([_voc_images_id(paths), classes], [*lists, *boxes])


def voc_labels_id(dataset: str, split: str, folder: Path) -> str:
    """Hash the split's images and the bytes of its per-class lists; without lists, as ``voc_id``,
    for then the labels come from the boxes.
    """
    lists = voc.class_list_paths(folder, split)
    if not lists:
        return voc_id(dataset, split, folder)
    paths = voc.image_paths(dataset, split, folder)
    return _combine([_voc_images_id(paths)], [*lists.values()])


def coco_id(split: str, folder: Path) -> str:
    """Hash the image folder (names, sizes) and the bytes of the JSON."""
    return _combine([_folder_id(coco.coco_images(split, folder))], [coco.coco_json(split, folder)])


def lvis_id(dataset: str, split: str, folder: Path, coco_folder: Path) -> str:
    """Hash both COCO image folders, since LVIS splits draw from both, and the bytes of the JSON."""
    folders = [coco.coco_images(name, coco_folder) for name in coco.SPLITS]
    parts = [_folder_id(path) for path in folders if path.is_dir()]
    return _combine(parts, [lvis.lvis_json(dataset, split, folder)])


def object_maps_id(dataset: str, split: str, folder: Path) -> str:
    """Hash the split's images and its PNGs of objects (names, sizes)."""
    maps = [path.name for _, path in segments.object_map_paths(dataset, split, folder)]
    images = _voc_images_id(voc.image_paths(dataset, split, folder))
    return _combine([images, _images_id(folder / "SegmentationObject", maps)], [])


def panoptic_id(split: str, folder: Path) -> str:
    """Hash the image folder and the PNGs (names, sizes), and the bytes of the panoptic JSON."""
    folders = [coco.coco_images(split, folder), segments.panoptic_maps_folder(split, folder)]
    return _combine([_folder_id(path) for path in folders], [coco.panoptic_json(split, folder)])


def _voc_images_id(paths: tuple[Path, ...]) -> str:
    return _images_id(paths[0].parent, [path.name for path in paths])


def _folder_id(folder: Path) -> str:
    return _images_id(folder, index_folder(folder).values())


def _images_id(folder: Path, names: Iterable[str]) -> str:
    return images_id(ImageList(folder, tuple(sorted(names))))


def _combine(parts: list[str], files: list[Path]) -> str:
    digest = hashlib.sha256("\n".join(parts).encode())
    for path in files:
        digest.update(f"\n{path.name} {annotation_sha256(path)}".encode())
    return digest.hexdigest()[:16]


def annotation_sha256(path: Path) -> str:
    """Hash an annotation file's bytes, once for as long as it does not change.

    Raises:
        DataError: it is not there.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(
            f"annotation file {path} is not there. "
            "To use the images without annotations, give their folder"
        ) from None
    return _digest(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=65536)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file's bytes; size and mtime only say when the kept value no longer holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
