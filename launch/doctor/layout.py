"""The layout in which a data set is expected, drawn as a tree with what is there and what is not.

Hashes of archives are those that torchvision's own downloads are checked against.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from launch.tables import branches
from sslbench.datasets import DataError, DataRoots, layout_of, locate


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file or folder of a data set, relative to its own folder."""

    path: str
    what: str = ""


@dataclasses.dataclass(frozen=True)
class Expected:
    """All of a data set that is read, and the public archives that hold it."""

    entries: tuple[Entry, ...]
    archives: tuple[str, ...]


_COCO_IMAGES = "images: those of COCO 2017 (train2017.zip, val2017.zip)"
EXPECTED: Mapping[str, Expected] = {
    "voc2007": Expected(
        (
            Entry("Annotations", "000001.xml ... 009963.xml"),
            Entry("ImageSets/Main/train.txt", "2,501 ids"),
            Entry("ImageSets/Main/val.txt", "2,510 ids"),
            Entry("ImageSets/Main/trainval.txt", "5,011 ids"),
            Entry("ImageSets/Main/test.txt", "4,952 ids"),
            Entry("ImageSets/Main/aeroplane_trainval.txt", "... one a class and split"),
            Entry("JPEGImages", "000001.jpg ... 009963.jpg"),
        ),
        (
            "VOCtrainval_06-Nov-2007.tar  md5 c52e279531787c972589f7e41ab4ae64",
            "VOCtest_06-Nov-2007.tar      md5 b6e924de25625d8de591ea690078ad9f",
        ),
    ),
    "voc2012": Expected(
        (
            Entry("Annotations", "2007_000027.xml ..."),
            Entry("ImageSets/Main/train.txt", "5,717 ids"),
            Entry("ImageSets/Main/val.txt", "5,823 ids"),
            Entry("ImageSets/Main/trainval.txt", "11,540 ids"),
            Entry("JPEGImages", "2007_000027.jpg ..."),
        ),
        ("VOCtrainval_11-May-2012.tar  md5 6cd6e144f989b92b3379bac3b3de84fd",),
    ),
    "coco2017": Expected(
        (
            Entry("annotations/instances_train2017.json"),
            Entry("annotations/instances_val2017.json"),
            Entry("train2017", "118,287 images: 000000000009.jpg ..."),
            Entry("val2017", "5,000 images: 000000000139.jpg ..."),
        ),
        ("train2017.zip", "val2017.zip", "annotations_trainval2017.zip"),
    ),
    "lvis_v1": Expected(
        (Entry("lvis_v1_train.json"), Entry("lvis_v1_val.json")),
        ("lvis_v1_train.json.zip", "lvis_v1_val.json.zip", _COCO_IMAGES),
    ),
    "lvis_v05": Expected(
        (Entry("lvis_v0.5_train.json"), Entry("lvis_v0.5_val.json")),
        ("lvis_v0.5_train.json.zip", "lvis_v0.5_val.json.zip", _COCO_IMAGES),
    ),
}


def expected_folder(dataset: str, roots: DataRoots) -> Path:
    """Return the folder where the data set lies, or where it is expected first."""
    try:
        return locate(dataset, roots)
    except DataError:
        top = roots.of(dataset)
        return top if dataset in roots.overrides else top / layout_of(dataset).folders[0]


def tree(dataset: str, roots: DataRoots) -> list[str]:
    """Draw the expected files below the folder of a data set; each is there or missing."""
    folder = expected_folder(dataset, roots)
    lines: list[tuple[int, str]] = []
    above: tuple[str, ...] = ()
    for entry in EXPECTED[dataset].entries:
        *parents, name = entry.path.split("/")
        for depth, parent in enumerate(parents):
            if above[: depth + 1] != (*parents[: depth + 1],):
                lines.append((depth + 1, f"{parent}/"))
        above = tuple(parents)
        where = folder / entry.path
        state = "there" if where.exists() else "missing"
        slash = "" if where.suffix in (".txt", ".json") else "/"
        what = f"  {entry.what}" if entry.what else ""
        lines.append((len(parents) + 1, f"{name}{slash}{what}  [{state}]"))
    connectors = branches([depth for depth, _ in lines])
    drawn = [connector + text for connector, (_, text) in zip(connectors, lines, strict=True)]
    return [f"{folder}/", *drawn, *(f"from {archive}" for archive in EXPECTED[dataset].archives)]
