"""Everything about a mask store that can be checked, and what to do about what is wrong.

Shape letters: N images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.masks.store import (
    REMAKE,
    content_hash,
    read_index,
    read_manifest,
    stored_size,
)
from sslbench.datasets import ImageList, image_size, images_id
from sslbench.log import progress

KMEANS_KEYS = (
    "backbone",
    "layers",
    "min_clusters",
    "max_clusters",
    "images_per_clustering",
    "seed",
    "epoch",
)
MAX_NAMED = 20  # images of one kind of problem that are named
NO_HASH = "no hash"


def hash_state(folder: Path) -> str:
    """``sha256 ...`` of a store's content, or ``no hash`` of an older one."""
    written = read_manifest(folder).get("sha256")
    return NO_HASH if written is None else f"sha256 {written[:16]}"


def problems(folder: Path, images: ImageList | None = None) -> Iterator[str]:
    """Name what is wrong with a store, one line a problem; nothing for a good one.

    Args:
        images: that the store was made for; each one's size is compared as well.
    """
    try:
        manifest, index_N = read_manifest(folder), read_index(folder)
    except ValueError as error:
        yield str(error)
        return
    missing = _missing_keys(manifest)
    if missing:
        yield f"{folder / 'manifest.json'} lacks {', '.join(missing)}. {REMAKE}"
        return
    name = _Names(images, manifest)
    # each presumes what the one before found right
    yield from (
        list(_wrong_sizes(folder, manifest, index_N))
        or list(_wrong_rows(folder, manifest, index_N, name))
        or list(_wrong_labels(folder, index_N, name))
    )
    yield from _wrong_hash(folder, manifest)
    if images is not None:
        yield from _wrong_images(folder, manifest, index_N, images)


class _Names:
    """What an image is called in a message: its name where the list is known."""

    def __init__(self, images: ImageList | None, manifest: Mapping[str, Any]) -> None:
        belongs = images is not None and len(images) == manifest["num_images"]
        self.images = images if belongs else None

    def __call__(self, index: int) -> str:
        return f"image number {index}" if self.images is None else self.images.name(index)


def _missing_keys(manifest: Mapping[str, Any]) -> list[str]:
    wanted = ("source", *(KMEANS_KEYS if manifest.get("source") == "kmeans" else ()))
    return [key for key in wanted if key not in manifest]


def _wrong_sizes(folder: Path, manifest: Mapping[str, Any], index_N: np.ndarray) -> Iterator[str]:
    if len(index_N) != manifest["num_images"]:
        yield (
            f"{folder / 'index.npy'} has {len(index_N)} images, the manifest says "
            f"{manifest['num_images']}. {REMAKE}"
        )
    path = folder / "labels.bin"
    actual = path.stat().st_size if path.exists() else 0
    if actual != manifest["bytes"]:
        yield f"{path} has {actual} bytes instead of {manifest['bytes']}. {REMAKE}"


def _wrong_rows(
    folder: Path, manifest: Mapping[str, Any], index_N: np.ndarray, name: _Names
) -> Iterator[str]:
    """Maps of another size than their images ask for, or that do not follow one another."""
    cells_N = index_N["h"].astype(np.int64) * index_N["w"]
    h_N, w_N = stored_size(index_N["height"], index_N["width"])
    bad_N = (index_N["h"] != h_N) | (index_N["w"] != w_N) | (cells_N <= 0)
    yield from _named(
        bad_N,
        lambda i: (
            f"{name(i)}: its map is {index_N['h'][i]}x{index_N['w'][i]} cells, an image of "
            f"{index_N['height'][i]}x{index_N['width'][i]} pixels has {h_N[i]}x{w_N[i]}. {REMAKE}"
        ),
    )
    expected_N = np.cumsum(cells_N) - cells_N
    yield from _named(
        index_N["offset"] != expected_N,
        lambda i: (
            f"{name(i)}: its map starts at byte {index_N['offset'][i]} of labels.bin instead of "
            f"{expected_N[i]}. {REMAKE}"
        ),
    )
    if cells_N.sum() != manifest["bytes"]:
        yield (
            f"{folder / 'index.npy'} counts {cells_N.sum()} cells, labels.bin has "
            f"{manifest['bytes']}. {REMAKE}"
        )


def _wrong_labels(folder: Path, index_N: np.ndarray, name: _Names) -> Iterator[str]:
    labels = np.memmap(folder / "labels.bin", np.uint8, mode="r")
    largest_N = np.maximum.reduceat(labels, index_N["offset"])
    yield from _named(
        largest_N >= index_N["clusters"],
        lambda i: (
            f"{name(i)}: label {largest_N[i]} where only {index_N['clusters'][i]} clusters are. "
            f"{REMAKE}"
        ),
    )


def _wrong_hash(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    if "sha256" not in manifest or not (folder / "labels.bin").exists():
        return
    actual, written = content_hash(folder), manifest["sha256"]
    if actual != written:
        yield (
            f"{folder}: the content's hash is {actual[:16]}, it was written with {written[:16]}. "
            f"{REMAKE}"
        )


def _wrong_images(
    folder: Path, manifest: Mapping[str, Any], index_N: np.ndarray, images: ImageList
) -> Iterator[str]:
    if len(images) != len(index_N):
        yield _another_list(folder, manifest, images, images_id(images))
        return
    sizes_N2 = np.stack([index_N["height"], index_N["width"]], axis=1).tolist()
    yield from _wrong_image_sizes(sizes_N2, images)
    found = images_id(images)
    if found != manifest["images_id"]:
        yield _another_list(folder, manifest, images, found)


def _another_list(folder: Path, manifest: Mapping[str, Any], images: ImageList, found: str) -> str:
    return (
        f"{folder} was made for the image list {manifest['images_id']} of {manifest['num_images']} "
        f"images, {images.base} is {found} of {len(images)}: images were added, removed or "
        "changed. Bring the old ones back, or start a new run folder"
    )


def _wrong_image_sizes(sizes_N2: Sequence[list[int]], images: ImageList) -> Iterator[str]:
    way_out = "Bring the old image back, or start a new run folder"
    with progress(len(images), "image sizes") as bar:
        for index, size in enumerate(sizes_N2):
            try:
                found = list(image_size(images.read(index), images.name(index)))
            except ValueError as error:
                yield str(error)
            else:
                if found != size:
                    yield (
                        f"{images.name(index)}: is {found[0]}x{found[1]} pixels, its masks were "
                        f"made for {size[0]}x{size[1]}. {way_out}"
                    )
            bar.advance()


def _named(bad_N: np.ndarray, tell: Callable[[int], str]) -> Iterator[str]:
    """Tell the first few, and how many there are beside them."""
    indices = np.flatnonzero(bad_N).tolist()
    for index in indices[:MAX_NAMED]:
        yield tell(index)
    if len(indices) > MAX_NAMED:
        yield f"... and {len(indices) - MAX_NAMED} more images like the last one"
