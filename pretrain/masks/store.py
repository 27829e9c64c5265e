"""One mask generation on disk: uint8 label maps at stride 8, memory-mapped.

    epoch_0006/labels.bin     all maps, one after the other, in the order of the sorted image list
               index.npy      one row per image: where its map lies, its size, the image's size
               manifest.json  what it was made from and for, and a hash of the other two

The folder appears under its name only when it is complete.
"""

import contextlib
import errno
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslbench.files import atomic_path, read_json, write_array, write_json

FORMAT, VERSION = "sslbench.masks", 1
REMAKE = "Copy it anew, or delete it and make it again (masks of a run: the whole run folder)"
BASE_KEYS = ("images_id", "num_images", "bytes")  # without these no store can be opened
KINDS: dict[str, type] = {  # of a manifest's values; not all manifests have all
    "images_id": str,
    "num_images": int,
    "bytes": int,
    "sha256": str,
    "source": str,
    "backbone": str,
    "layers": list,
    "min_clusters": int,
    "max_clusters": int,
    "seed": int,
    "rule": dict,
    "settings": dict,
}
KIND_NAMES = {str: "a text", int: "a whole number", list: "a list of names", dict: "a table"}
INDEX = np.dtype(
    [
        ("offset", np.int64),
        ("h", np.int32),
        ("w", np.int32),
        ("height", np.int32),
        ("width", np.int32),
        ("clusters", np.int32),
        ("group", np.int32),
    ]
)


class MaskError(ValueError):
    """A mask store that is missing, broken or belongs to something else."""


@dataclass(frozen=True)
class MaskEntry:
    """One image's masks."""

    labels_hw: np.ndarray  # uint8, one label per 8x8 pixels
    height: int  # of the image
    width: int
    clusters: int  # labels that could occur
    group: int  # images of one clustering share it; labels compare within an image only


def stored_size(height: int, width: int) -> tuple[int, int]:
    """Size of the stored map of an image: one cell per 8 pixels, rounded up."""
    return -(-height // 8), -(-width // 8)


def write_store(folder: Path, entries: Iterable[MaskEntry], manifest: Mapping[str, Any]) -> None:
    """Write a generation; ``folder`` appears at once and whole.

    Args:
        entries: in the order of the image list.
        manifest: JSON values that say what the masks were made from; ``images_id`` among them.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    rows, offset, digest = [], 0, hashlib.sha256()
    with _only_writer(folder), atomic_path(folder) as scratch:
        scratch.mkdir()
        with (scratch / "labels.bin").open("wb") as file:
            for entry in entries:
                h, w = entry.labels_hw.shape
                if entry.labels_hw.dtype != np.uint8:
                    raise AssertionError(f"labels are {entry.labels_hw.dtype}: they would wrap")
                if (h, w) != stored_size(entry.height, entry.width):
                    raise AssertionError(f"a {h}x{w} map for a {entry.height}x{entry.width} image")
                size = (entry.height, entry.width)
                rows.append((offset, h, w, *size, entry.clusters, entry.group))
                labels = entry.labels_hw.tobytes()
                digest.update(labels)
                offset += file.write(labels)
        write_array(scratch / "index.npy", np.array(rows, INDEX))
        digest.update((scratch / "index.npy").read_bytes())
        head = {"format": FORMAT, "version": VERSION, "num_images": len(rows), "bytes": offset}
        last = {"sha256": digest.hexdigest(), "complete": True}
        write_json(scratch / "manifest.json", {**head, **manifest, **last})


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise MaskError(
            f"another process made {folder} meanwhile; run the same command again: masks that "
            "fit are used as they are"
        ) from error


def content_hash(folder: Path) -> str:
    """sha256 of labels.bin followed by index.npy, as the manifest keeps it."""
    digest = hashlib.sha256()
    for name in ("labels.bin", "index.npy"):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class MaskStore:
    """A finished generation, read without copying; cheap to send to loader workers.

    Args:
        folder: the generation.
        images_id: identity of the image list it must belong to.

    Raises:
        MaskError: it is no complete store, was cut short, or belongs to other images.
    """

    def __init__(self, folder: Path, images_id: str) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        if self.manifest["images_id"] != images_id:
            raise MaskError(
                f"{folder} holds masks of another image list ({self.manifest['images_id']}, now "
                f"{images_id}): images were added, removed or changed. Start a new run folder, or "
                "give masks of these images"
            )
        self._index = read_index(folder)
        _require_whole(folder, self.manifest, len(self._index))
        self._labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_labels": None}  # a worker maps the file itself

    def read(self, index: int) -> np.ndarray:
        """Labels of one image, uint8 (h, w)."""
        if self._labels is None:
            self._labels = np.memmap(self.folder / "labels.bin", np.uint8, mode="r")
        row = self._index[index]
        start = int(row["offset"])
        h, w = int(row["h"]), int(row["w"])
        return self._labels[start : start + h * w].reshape(h, w)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of the image that the masks were made for."""
        row = self._index[index]
        return int(row["height"]), int(row["width"])

    def clusters(self, index: int) -> int:
        """Number of clusters of the image's group."""
        return int(self._index[index]["clusters"])

    def group_of(self, index: int) -> list[int]:
        """Images that were clustered together with this one, itself among them."""
        groups = self._index["group"]
        members: list[int] = np.flatnonzero(groups == groups[index]).tolist()
        return members


def source_of(store: MaskStore) -> str:
    """What kind of masks they are.

    Raises:
        MaskError: the manifest does not say.
    """
    if "source" not in store.manifest:
        raise MaskError(f"{store.folder / 'manifest.json'} lacks source. {REMAKE}")
    return str(store.manifest["source"])


def _require_whole(folder: Path, manifest: Mapping[str, Any], num_rows: int) -> None:
    path = folder / "labels.bin"
    actual = path.stat().st_size if path.exists() else 0
    if num_rows != manifest["num_images"] or actual != manifest["bytes"]:
        raise MaskError(
            f"{folder} is damaged: labels.bin has {actual} bytes instead of {manifest['bytes']}, "
            f"index.npy {num_rows} images instead of {manifest['num_images']}. {REMAKE}"
        )


def generations(masks_dir: Path, images_id: str) -> dict[str, MaskStore]:
    """All finished generations of a run, oldest first: ``epoch_0006`` -> store."""
    folders = sorted(path for path in masks_dir.glob("epoch_*") if path.suffix != ".partial")
    if not folders:
        raise MaskError(f"{masks_dir} holds no mask generation (epoch_0001 and the like)")
    return {folder.name: MaskStore(folder, images_id) for folder in folders}


def read_index(folder: Path) -> np.ndarray:
    """One row of ``INDEX`` per image.

    Raises:
        MaskError: the file is missing, cut short or something else.
    """
    path = folder / "index.npy"
    try:
        index: np.ndarray = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise MaskError(f"{path} cannot be read ({error}). {REMAKE}") from None
    if index.dtype != INDEX or index.ndim != 1:
        raise MaskError(f"{path} is no index of masks: {index.dtype}, {index.shape}. {REMAKE}")
    return index


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a finished generation was made from and for.

    Raises:
        MaskError: it is no mask store, of another version, or not complete.
    """
    _require_finished(folder)
    if not folder.exists():
        told = broken_link(folder) or f"there are no masks at {folder}"
        raise MaskError(
            f"{told}. Give a store, as RUN/masks/epoch_0006; where a run needs it to continue, "
            "bring it back or start a new run folder"
        )
    path = folder / "manifest.json"
    if not path.exists():
        raise MaskError(
            f"{folder} is no mask store: it has no manifest.json. Give a store, as "
            "RUN/masks/epoch_0006; if it is one, copy it anew"
        )
    manifest = read_table(path)
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise MaskError(
            f"{path} is not of format {FORMAT} version {VERSION} but {manifest.get('format')} "
            f"{manifest.get('version')}. Give a store of this version, as RUN/masks/epoch_0006, or "
            "start a new run folder"
        )
    if not manifest.get("complete"):
        raise MaskError(f"{folder} is incomplete; delete it and run the same command again")
    missing = [key for key in BASE_KEYS if key not in manifest]
    if missing:
        raise MaskError(f"{path} lacks {', '.join(missing)}. {REMAKE}")
    require_kinds(path, manifest)
    return manifest


def read_table(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        MaskError: the file holds something else.
    """
    table: Any = read_json(path)
    if not isinstance(table, dict):
        raise MaskError(f"{path} holds no JSON object but {str(table)[:60]}. {REMAKE}")
    return table


def require_kinds(path: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse values of a manifest that nothing can be done with.

    Raises:
        MaskError: it names the first key.
    """
    for key, kind in KINDS.items():
        if key in manifest and not _is_of(kind, manifest[key]):
            raise MaskError(
                f"{path}: {key} should be {KIND_NAMES[kind]}, not {str(manifest[key])[:60]}. "
                f"{REMAKE}"
            )
    for key, other in (("min_clusters", "max_clusters"), ("max_clusters", "min_clusters")):
        if key in manifest and other not in manifest:
            raise MaskError(f"{path} has {key} but lacks {other}. {REMAKE}")


def _is_of(kind: type, value: Any) -> bool:
    if kind is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return type(value) is kind  # True is no number


def broken_link(path: Path) -> str:
    """Say where a link points that leads nowhere; empty for all else."""
    if path.is_symlink() and not path.exists():
        return f"{path} is a broken link to {path.readlink()}"
    return ""


def _require_finished(folder: Path) -> None:
    from pretrain.masks.parts import PARTIAL, parts_done  # which builds on stores itself

    if folder.suffix == PARTIAL and folder.is_dir():
        raise MaskError(
            f"{folder} is unfinished ({parts_done(folder)}); the command that was making it, run "
            "again, finishes it"
        )
