"""Make a mask generation in numbered parts: shared by the processes, kept through interruptions.

Each part is a file beside the generation (``epoch_0006.partial/part_000017.npz``) and its content
depends on nothing but its number. So the joined generation depends neither on the number of
processes nor on where the work was interrupted.
"""

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pretrain.masks.store import (
    MaskEntry,
    MaskError,
    MaskStore,
    read_table,
    require_kinds,
    stored_size,
    write_store,
)
from sslbench import dist
from sslbench.files import atomic_path, read_json, write_json
from sslbench.log import Progress

PARTIAL = ".partial"  # ends the name of a folder of parts
UNREADABLE = (zipfile.BadZipFile, EOFError, KeyError, ValueError)  # a file that was cut short
HASHES = {"images_id": "the images' id", "backbone": "the weights' hash"}
Part = dict[int, MaskEntry]  # index of the image -> its masks


class Shows(Protocol):
    """Shows how far work is: a ``RunLog``, or where there is no run folder ``sslbench.log``."""

    def progress(
        self, total: int, label: str, initial: int = 0
    ) -> AbstractContextManager[Progress]:
        """Show progress for the block."""

    def info(self, text: str) -> None:
        """Say one line."""


def make_in_parts(
    folder: Path,
    manifest: Mapping[str, Any],
    num_parts: int,
    make: Callable[[Sequence[int]], Iterable[Part]],
    label: str,
    log: Shows,
) -> MaskStore:
    """Make the generation ``folder``, or finish or reuse what an interrupted run left of it.

    Args:
        manifest: JSON values that decide the masks, ``images_id`` among them; anything made under
            another manifest is thrown away.
        make: yields the parts of the given numbers, in their order.
        label: what the progress says is being made.
    """
    parts_dir = parts_of(folder)
    if not _is_made(folder, manifest):
        missing: list[int] = []
        if dist.is_main():
            _prepare(parts_dir, manifest, num_parts)
            missing = _missing(parts_dir, num_parts, log)
        # as one process sees them: the files of a network disk may show late on another machine
        missing = dist.from_main(missing)
        with dist.patient_barrier() as wait:
            _make_missing(parts_dir, missing, num_parts, make, label, log)
            wait()
            if dist.is_main():
                write_store(folder, _in_image_order(parts_dir, num_parts), manifest)
            wait()
    if dist.is_main() and parts_dir.exists():  # also those that a kill left while they went
        shutil.rmtree(parts_dir)
    return MaskStore(folder, manifest["images_id"])


def _missing(parts_dir: Path, num_parts: int, log: Shows) -> list[int]:
    """Numbers of the parts that are not there; parts that cannot be read are dropped."""
    for path in sorted(parts_dir.glob("part_*.npz")):
        try:
            _load(path)
        except UNREADABLE as error:
            log.info(f"{path} cannot be read ({error}); it is made anew")
            path.unlink()
    there = {path.name for path in parts_dir.glob("part_*.npz")}
    return [n for n in range(num_parts) if _part_path(parts_dir, n).name not in there]


def _make_missing(
    parts_dir: Path,
    missing: Sequence[int],
    num_parts: int,
    make: Callable[[Sequence[int]], Iterable[Part]],
    label: str,
    log: Shows,
) -> None:
    """Make and keep this process's share of the missing parts."""
    mine = missing[dist.rank() :: dist.world_size()]
    done = (num_parts - len(missing)) // dist.world_size()
    with log.progress(done + len(mine), label, initial=done) as bar:
        for number, part in zip(mine, make(mine), strict=True):
            _save(_part_path(parts_dir, number), part)
            bar.advance()


def require_same(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a folder that holds, whole or in parts, anything but what ``manifest`` decides.

    For folders that a user names: ``make_in_parts`` would throw away what is there.

    Raises:
        MaskError: it names what differs.
    """
    for place in (folder, parts_of(folder)):
        path = place / "manifest.json"
        if path.exists():
            there = read_table(path)
            require_kinds(path, there)
            _require_same_manifest(place, there, _as_told(manifest, there))
        elif place.exists() and not _is_left_of_parts(place):
            raise MaskError(
                f"{place} is there already and holds no masks (it has no manifest.json). "
                "Give the name of a new folder"
            )


def _is_left_of_parts(place: Path) -> bool:
    """Whether a kill may have left it while the manifest was not yet, or no longer, there."""
    known = re.compile(r"parts\.json|lock\.json|part_\d+\.npz|\..*\.tmp")
    is_ours = place.suffix == PARTIAL and place.is_dir()
    return is_ours and all(known.fullmatch(path.name) for path in place.iterdir())


def _require_same_manifest(place: Path, there: Any, wanted: Mapping[str, Any]) -> None:
    known = _flat(there) if isinstance(there, dict) else {}
    differing = [
        f"{HASHES.get(key, key)} is {known.get(key, 'not told')} there and {value} here"
        for key, value in _flat(wanted).items()
        if known.get(key) != value
    ]
    if differing:
        raise MaskError(
            f"{place} holds masks that were made otherwise: {'; '.join(differing)}. Give the name "
            f"of a new folder, or delete {place} to make it anew"
        )


def _flat(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Without the one table that a manifest has, of k-means or of a fixed source.

    A key that was added later is told.
    """
    rule = {"fit_every": 1, **manifest["rule"]} if "rule" in manifest else {}
    return {**manifest, **rule, **manifest.get("settings", {}), "rule": None, "settings": None}


def parts_of(folder: Path) -> Path:
    """Where the parts of an unfinished generation lie."""
    return folder.with_name(f"{folder.name}{PARTIAL}")


def _is_made(folder: Path, manifest: Mapping[str, Any]) -> bool:
    path = folder / "manifest.json"
    if not path.exists():
        return False
    there = read_table(path)
    return _as_told(manifest, there).items() <= there.items()


def _as_told(manifest: Mapping[str, Any], there: Any) -> dict[str, Any]:
    """As it reads back; without the settings of a source where ``there`` is from before them."""
    plain = _as_json(manifest)
    if isinstance(there, dict) and "settings" not in there:
        plain.pop("settings", None)
    return plain


def _as_json(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """As it reads back from disk."""
    plain: dict[str, Any] = json.loads(json.dumps(manifest))
    return plain


def _prepare(parts_dir: Path, manifest: Mapping[str, Any], num_parts: int) -> None:
    """Keep an interrupted run's parts only if they were made under the same manifest."""
    path = parts_dir / "manifest.json"
    if path.exists():
        there = read_json(path)
        stale = there != _as_told(manifest, there)
    else:
        stale = any(parts_dir.glob("part_*"))
    if stale:
        shutil.rmtree(parts_dir)
    parts_dir.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_json(path, _as_json(manifest))
    write_json(parts_dir / "parts.json", {"num_parts": num_parts})  # for those who look on


def parts_done(parts_dir: Path) -> str:
    """How far an unfinished generation is, as ``3 of 12 parts``.

    Raises:
        MaskError: what tells their number is broken.
    """
    done = sum(1 for _ in parts_dir.glob("part_*.npz"))
    path = parts_dir / "parts.json"
    if not path.exists():
        return f"{done} of ? parts"
    total = read_table(path).get("num_parts")
    if not isinstance(total, int):
        raise MaskError(
            f"{path}: num_parts should be a whole number, not {total}. The command that was "
            "making these masks, run again, mends it"
        )
    return f"{done} of {total} parts"


def _part_path(parts_dir: Path, number: int) -> Path:
    return parts_dir / f"part_{number:06d}.npz"


def _save(path: Path, part: Part) -> None:
    entries = part.values()
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        np.savez(
            file,
            members=np.array(list(part), np.int64),
            facts=np.array([(e.height, e.width, e.clusters, e.group) for e in entries], np.int64),
            labels=np.concatenate([entry.labels_hw.ravel() for entry in entries]),
        )


def _load(path: Path) -> Part:
    part, start = {}, 0
    with np.load(path) as arrays:
        labels = arrays["labels"]
        for index, facts in zip(arrays["members"].tolist(), arrays["facts"].tolist(), strict=True):
            h, w = stored_size(*facts[:2])
            part[index] = MaskEntry(labels[start : start + h * w].reshape(h, w), *facts)
            start += h * w
    return part


def _in_image_order(parts_dir: Path, num_parts: int) -> Iterator[MaskEntry]:
    entries: Part = {}
    for number in range(num_parts):
        entries |= _load(_part_path(parts_dir, number))
    for index in range(len(entries)):
        yield entries[index]
