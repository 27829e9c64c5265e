"""Write the built-in data sets into a folder: all of it or nothing.

All is made in a scratch folder beside the target and moved there when its manifest is written: what
is in place is complete, and an interrupted run leaves nothing that is taken for data.
"""

import contextlib
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sslbench.datasets import DataError
from sslbench.files import atomic_path, read_json, sweep_scratch, write_json
from sslbench.lock import hold_lock
from sslbench.log import Progress, progress
from sslbench.rng import numpy_generator
from sslbench.scenes.coco_json import Entry, entry, write_instances
from sslbench.scenes.devkit import Labels, labels_of, write_lists, write_xml
from sslbench.scenes.drawing import Scene, draw_scene
from sslbench.scenes.lvis_json import write_lvis

VERSION = 3  # bump when the same settings give other pictures or annotations
MANIFEST = "scenes.json"
JPEG_QUALITY = 90
CROWD_EVERY = 8  # COCO pictures
LVIS_VAL_OF_TRAIN = 0.1  # share of train2017 that LVIS v1 validates on


@dataclass(frozen=True)
class SceneSettings:
    """How many pictures each layout gets, and the seed of all of them."""

    num_train: int = 480
    num_test: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_train", 2), ("num_test", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise DataError(f"{name} must be at least {least}, got {getattr(self, name)}")


def generate(out: Path, settings: SceneSettings | None = None) -> bool:
    """Make the data sets in ``out``, unless they are there; return whether they had to be made.

    Raises:
        DataError: the folder holds something else, or scenes of other settings.
    """
    out = Path(os.path.abspath(out.expanduser()))
    settings = settings or SceneSettings()
    manifest = {"version": VERSION, **asdict(settings)}
    if _is_made(out, manifest):
        return False
    work = out.with_name(f".{out.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    with hold_lock(work):
        sweep_scratch(work)
        shutil.rmtree(work / "data", ignore_errors=True)
        with atomic_path(work / "data") as scratch:
            _write_all(scratch, settings)
            write_json(scratch / MANIFEST, manifest)
        if _is_made(out, manifest):  # by a run that held the lock just before
            shutil.rmtree(work / "data")
        else:
            os.replace(work / "data", out)
    with contextlib.suppress(OSError):
        work.rmdir()
    return True


def _is_made(out: Path, manifest: dict[str, Any]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    path = out / MANIFEST
    if not path.is_file():
        raise DataError(f"{out} holds something else (no {MANIFEST}); choose a new or empty folder")
    there = read_json(path)
    if there != manifest:
        raise DataError(
            f"{out} holds scenes made with {_brief(there)}, not {_brief(manifest)}; "
            f"choose another folder, or delete {out} to make them anew"
        )
    return True


def _brief(manifest: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in manifest.items())


def _write_all(root: Path, settings: SceneSettings) -> None:
    with progress(2 * (settings.num_train + settings.num_test), "scenes") as bar:
        _write_voc(root / "VOCdevkit" / "VOC2007", settings, bar)
        _write_coco(root, settings, bar)


def _write_voc(folder: Path, settings: SceneSettings, bar: Progress) -> None:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    total = settings.num_train + settings.num_test
    numbers = 1 + numpy_generator(settings.seed, "voc_order").permutation(total)
    splits: dict[str, dict[str, Labels]] = {"train": {}, "val": {}, "trainval": {}, "test": {}}
    for position, number in enumerate(numbers.tolist()):
        scene = draw_scene(numpy_generator(settings.seed, "voc_scene", number))
        stem = f"{number:06d}"
        _write_jpeg(folder / "JPEGImages" / f"{stem}.jpg", scene)
        write_xml(folder / "Annotations" / f"{stem}.xml", scene)
        for split in _voc_splits(position, settings):
            splits[split][stem] = labels_of(scene.instances)
        bar.advance()
    write_lists(folder / "ImageSets" / "Main", splits)


def _voc_splits(position: int, settings: SceneSettings) -> tuple[str, ...]:
    if position >= settings.num_train:
        return ("test",)
    return ("trainval", "train" if position < settings.num_train // 2 else "val")


def _write_coco(root: Path, settings: SceneSettings, bar: Progress) -> None:
    coco, lvis = root / "coco", root / "lvis"
    for folder in (coco / "train2017", coco / "val2017", coco / "annotations", lvis):
        folder.mkdir(parents=True)
    total = settings.num_train + settings.num_test
    draw = numpy_generator(settings.seed, "coco_numbers")
    numbers = (1 + draw.choice(600_000, total, replace=False)).tolist()
    entries: dict[str, list[Entry]] = {}
    for split, chosen in (
        ("train", numbers[: settings.num_train]),
        ("val", numbers[settings.num_train :]),
    ):
        folder = coco / f"{split}2017"
        entries[split] = [_write_coco_picture(folder, n, settings.seed, bar) for n in chosen]
        write_instances(coco / "annotations" / f"instances_{split}2017.json", entries[split])
    moved = int(LVIS_VAL_OF_TRAIN * settings.num_train)
    train = entries["train"][moved:]
    write_lvis(
        lvis,
        "v1",
        {"train": train, "val": entries["train"][:moved] + entries["val"]},
        settings.seed,
    )
    write_lvis(lvis, "v0.5", {"train": train, "val": entries["val"]}, settings.seed)


def _write_coco_picture(folder: Path, number: int, seed: int, bar: Progress) -> Entry:
    generator = numpy_generator(seed, "coco_scene", number)
    scene = draw_scene(generator, crowd=bool(generator.integers(CROWD_EVERY) == 0))
    _write_jpeg(folder / f"{number:012d}.jpg", scene)
    bar.advance()
    return entry(scene, number, folder.name)


def _write_jpeg(path: Path, scene: Scene) -> None:
    Image.fromarray(scene.pixels_HW3).save(path, quality=JPEG_QUALITY)
