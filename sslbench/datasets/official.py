"""The published sizes of the data sets: whether what lies on disk is the official data.

Images, objects and classes as the organisers release them: VOC's development kits (difficult
objects counted), instances_*2017.json of COCO, lvis_v1_*.json and lvis_v0.5_*.json of LVIS.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sslbench.datasets.identity import annotation_sha256
from sslbench.datasets.records import Dataset


@dataclass(frozen=True)
class OfficialSplit:
    """Sizes of a released split.

    Args:
        num_objects: None where no released figure is known here.
        list_digest: of the image ids, for lists that were compared with a released one.
        annotation_sha256: of the unpacked annotation file. COCO publishes none; these are what many
            independent projects record of it. Of LVIS's files no two were found.
    """

    num_images: int
    num_objects: int | None
    num_classes: int
    list_digest: str = ""
    annotation_sha256: str = ""


OFFICIAL: Mapping[str, OfficialSplit] = {
    "voc2007/train": OfficialSplit(2501, 7844, 20),
    "voc2007/val": OfficialSplit(2510, 7818, 20),
    "voc2007/trainval": OfficialSplit(5011, 15662, 20, "03ed77dae14e62dd"),
    "voc2007/test": OfficialSplit(4952, 14976, 20, "e14f93dac92f03b3"),
    "voc2012/train": OfficialSplit(5717, 15774, 20),
    "voc2012/val": OfficialSplit(5823, 15787, 20),
    "voc2012/trainval": OfficialSplit(11540, 31561, 20),
    "coco2017/train": OfficialSplit(
        118287,
        860001,
        80,
        annotation_sha256="610fce4944abdeb15354cc765333805529359d12d88f2f711393ca586901d01d",
    ),
    "coco2017/val": OfficialSplit(
        5000,
        36781,
        80,
        annotation_sha256="e8c7f7908f1d7278341fae127d0da654f102f11bd7b21d8aeefa635b8c810b6f",
    ),
    "lvis_v1/train": OfficialSplit(100170, 1270141, 1203),
    "lvis_v1/val": OfficialSplit(19809, 244707, 1203),
    "lvis_v05/train": OfficialSplit(57263, None, 1230),
    "lvis_v05/val": OfficialSplit(5000, None, 1230),
}


def list_digest(image_ids: Iterable[int | str]) -> str:
    """Hash the ids of a split, in whatever order they are listed."""
    text = "\n".join(sorted(str(image_id) for image_id in image_ids))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unofficial(data: Dataset) -> tuple[str, ...]:
    """Say in a line how a split differs from the released one, or nothing where it does not."""
    spec = f"{data.name}/{data.split}"
    known = OFFICIAL.get(spec)
    if known is None:
        return (f"{spec} is no released split",)
    num_objects = sum(len(record.objects) for record in data.records)
    counted = (
        (len(data.records), known.num_images, "images"),
        (num_objects, known.num_objects, "objects"),
        (len(data.classes), known.num_classes, "classes"),
    )
    differs = [
        f"{found} of {expected} {what}"
        for found, expected, what in counted
        if expected is not None and found != expected
    ]
    if not differs and known.list_digest:
        digest = list_digest(record.image_id for record in data.records)
        differs += [] if digest == known.list_digest else ["other images than its released list"]
    if not differs and known.annotation_sha256 and data.annotation_path is not None:
        found = annotation_sha256(data.annotation_path)
        if found != known.annotation_sha256:
            differs += [f"other annotations than released (sha256 {found[:12]}...)"]
    return (f"{spec} has {', '.join(differs)}",) if differs else ()
