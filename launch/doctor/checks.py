"""One split, or path of images, looked over: is it there, official, and can it be decoded?"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from sslbench.datasets import (
    DataError,
    DataRoots,
    Dataset,
    coco,
    content_id,
    decode_rgb,
    image_labels,
    images,
    is_data_spec,
    layout_of,
    locate,
    lvis,
    parse_spec,
    read,
    segment_maps,
    spec_part,
)
from sslbench.datasets.official import OFFICIAL

State = Literal["official", "not official", "there", "missing", "broken"]
MAX_FAULTS = 5  # told of one sample


@dataclasses.dataclass(frozen=True)
class Check:
    """What was found of one split or path of images."""

    spec: str
    state: State
    counts: str = ""
    num_decoded: int = 0
    content_id: str = ""
    notes: tuple[str, ...] = ()  # worth knowing, no fault
    faults: tuple[str, ...] = ()

    @property
    def is_usable(self) -> bool:
        return not self.faults


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a reader returned, in the same form for every part of a split."""

    counts: str
    num_images: int
    decode: Callable[[int], None]
    notes: tuple[str, ...] = ()
    unofficial: tuple[str, ...] = ()


def check(spec: str, roots: DataRoots, sample: int) -> Check:
    """Look a split over as a run would read it, and decode ``sample`` of its images."""
    if absent := _absent(spec, roots):
        return Check(spec, "missing", faults=(absent,))
    try:
        found = _read(spec, roots)
        mark = content_id(spec, roots)
    except DataError as error:
        return Check(spec, "broken", faults=(str(error),))
    places = _evenly(found.num_images, sample)
    faults = _faults(found.decode, places)
    state: State = "not official" if found.unofficial else "there"
    known = is_data_spec(spec) and "/".join(parse_spec(spec)) in OFFICIAL
    if known and not found.unofficial and spec_part(spec) == "all":
        state = "official"
    return Check(
        spec,
        "broken" if faults else state,
        found.counts,
        len(places),
        mark,
        (*(f"not the official data: {line}" for line in found.unofficial), *found.notes),
        faults,
    )


def _absent(spec: str, roots: DataRoots) -> str:
    """Why a split is not there at all; empty where it is, whole or not."""
    if not is_data_spec(spec):
        path = Path(spec).expanduser()
        return "" if path.exists() else f"{spec}: no such folder, list file or tar"
    try:
        path = _needed_path(spec, roots)
    except DataError as error:
        return str(error).splitlines()[0].removesuffix(" Looked for:")
    return "" if path.exists() else f"{path} is not there"


def _needed_path(spec: str, roots: DataRoots) -> Path:
    """The one file or folder that what is read of a split cannot be without."""
    dataset, split = parse_spec(spec)
    folder = locate(dataset, roots)
    match layout_of(dataset).family:
        case "voc":
            return folder / "ImageSets" / "Main" / f"{split}.txt"
        case "lvis":
            return lvis.lvis_json(dataset, split, folder)
        case "coco":
            part = spec_part(spec)
            if part == "images":
                return coco.coco_images(split, folder)
            make = coco.panoptic_json if part == "segments" else coco.coco_json
            return make(split, folder)


def _read(spec: str, roots: DataRoots) -> _Found:
    part = spec_part(spec) if is_data_spec(spec) else "images"
    if part == "images":
        return _images(spec, roots)
    if part == "labels":
        labels = image_labels(spec, roots)
        counts = f"{len(labels.paths)} images, {len(labels.classes)} classes"
        odd = _other_count(spec, len(labels.paths))
        return _Found(counts, len(labels.paths), partial(_decode_of, labels.paths), unofficial=odd)
    if part == "segments":
        maps = segment_maps(spec, roots)
        counts = f"{len(maps)} images with segments"

        def decode(place: int) -> None:
            maps[place].regions()
            _decode(maps[place].path, (maps[place].height, maps[place].width))

        return _Found(counts, len(maps), decode)
    return _instances(read(spec, roots))


def _images(spec: str, roots: DataRoots) -> _Found:
    listed = images(spec, roots)

    def decode(place: int) -> None:
        decode_rgb(listed.read(place), str(listed.base / listed.name(place)))

    odd = _other_count(spec, len(listed))
    return _Found(f"{len(listed)} images", len(listed), decode, unofficial=odd)


def _other_count(spec: str, num_images: int) -> tuple[str, ...]:
    known = OFFICIAL.get("/".join(parse_spec(spec))) if is_data_spec(spec) else None
    if known is None or num_images == known.num_images:
        return ()
    return (f"{num_images} of {known.num_images} images",)


def _instances(data: Dataset) -> _Found:
    num_objects = sum(len(record.objects) for record in data.records)
    counts = f"{len(data.records)} images, {num_objects} objects, {len(data.classes)} classes"

    def decode(place: int) -> None:
        record = data.records[place]
        _decode(record.path, (record.height, record.width))

    prefix = f"{data.name}/{data.split} has "
    odd = tuple(line.removeprefix(prefix) for line in data.unofficial)
    return _Found(counts, len(data.records), decode, data.notes, odd)


def _decode_of(paths: Sequence[Path], place: int) -> None:
    _decode(paths[place])


def _decode(path: Path, size: tuple[int, int] | None = None) -> None:
    """Decode an image; compare it with the (height, width) that its annotations say."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    height, width, _ = decode_rgb(data, str(path)).shape
    if size is not None and (height, width) != size:
        raise DataError(
            f"{path} is {width} x {height} pixels, its annotations say {size[1]} x {size[0]}; "
            "restore the image or its annotations"
        )


def _evenly(count: int, sample: int) -> Sequence[int]:
    """Places of ``sample`` items, evenly spread from the first to the last."""
    if sample >= count:
        return range(count)
    return sorted({round(step * (count - 1) / max(sample - 1, 1)) for step in range(sample)})


def _faults(decode: Callable[[int], None], places: Sequence[int]) -> tuple[str, ...]:
    found: list[str] = []
    for place in places:
        try:
            decode(place)
        except DataError as error:
            found.append(str(error))
    if len(found) > MAX_FAULTS:
        return (*found[:MAX_FAULTS], f"and {len(found) - MAX_FAULTS} more of {len(places)} images")
    return tuple(found)
