"""What mask generations there are, one row each: what they hold and how they were made."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.masks.parts import PARTIAL, parts_done
from pretrain.masks.store import (
    MaskError,
    MaskStore,
    broken_link,
    read_index,
    read_manifest,
    read_table,
    require_kinds,
)

UNKNOWN = "-"


@dataclass(frozen=True)
class Row:
    """One generation, as text."""

    name: str
    source: str = UNKNOWN
    images: str = UNKNOWN
    bytes: str = UNKNOWN
    bytes_per_image: str = UNKNOWN
    labels: str = UNKNOWN  # present in an image: the median
    layer: str = UNKNOWN
    clusters: str = UNKNOWN  # K, both ends of its range
    seed: str = UNKNOWN
    backbone: str = UNKNOWN  # hash of its weights
    state: str = "complete"


def list_masks(path: Path) -> list[Row]:
    """Describe a store, all stores of a folder, or all of a run.

    Raises:
        MaskError: there is none.
    """
    rows = [_describe(folder) for folder in mask_folders(path)]
    if not rows:
        raise MaskError(
            f"{path} holds no masks: give a run folder, its masks/ folder, or one of the stores "
            "in it (a folder with labels.bin, index.npy and manifest.json)"
        )
    return rows


def mask_folders(path: Path) -> list[Path]:
    """Finished and unfinished generations at or below ``path``, in the order of their names.

    Broken links count: the masks of a run are links where they were made before it.
    """
    if not path.is_dir():
        raise MaskError(broken_link(path) or f"{path}: no such folder")
    path = Path(os.path.abspath(path))  # "." has no name
    if _is_generation(path):
        return [path]
    inner = path / "masks" if (path / "masks").is_dir() else path
    # scratch folders of killed writers begin with a dot
    shown = [folder for folder in inner.iterdir() if not folder.name.startswith(".")]
    return sorted(folder for folder in shown if _is_generation(folder) or broken_link(folder))


def _is_generation(folder: Path) -> bool:
    return folder.is_dir() and (
        folder.suffix == PARTIAL or (folder / "labels.bin").exists() or _has_manifest(folder)
    )


def _has_manifest(folder: Path) -> bool:
    return (folder / "manifest.json").exists() and (folder / "index.npy").exists()


def _describe(folder: Path) -> Row:
    is_partial = folder.suffix == PARTIAL
    name = folder.stem if is_partial else folder.name
    try:
        return Row(name, **(_begun(folder) if is_partial else _finished(folder)))
    except ValueError as error:
        return Row(name, state=f"damaged: {broken_link(folder) or error}")


def _begun(folder: Path) -> dict[str, str]:
    path = folder / "manifest.json"
    manifest = read_table(path) if path.exists() else {}
    require_kinds(path, manifest)
    return {"state": f"unfinished: {parts_done(folder)}", **_made_from(manifest)}


def _finished(folder: Path) -> dict[str, str]:
    store = MaskStore(folder, read_manifest(folder)["images_id"])
    return _held(store) | _made_from(store.manifest)


def _held(store: MaskStore) -> dict[str, str]:
    size = sum(file.stat().st_size for file in store.folder.iterdir())
    clusters_N = read_index(store.folder)["clusters"]
    return {
        "images": str(len(store)),
        "bytes": str(size),
        "bytes_per_image": f"{size / len(store):.0f}",
        "labels": f"{np.median(list(_labels_present(store))):g}",
        "clusters": f"{clusters_N.min()}-{clusters_N.max()}",
    }


def _labels_present(store: MaskStore) -> Iterator[int]:
    for index in range(len(store)):
        yield np.count_nonzero(np.bincount(store.read(index).ravel()))


def _made_from(manifest: Mapping[str, Any]) -> dict[str, str]:
    told = {key: str(manifest[key]) for key in ("source", "seed", "backbone") if key in manifest}
    if "layers" in manifest:
        told["layer"] = "+".join(manifest["layers"])
    if "max_clusters" in manifest:
        told["clusters"] = f"{manifest['min_clusters']}-{manifest['max_clusters']}"
    return told
