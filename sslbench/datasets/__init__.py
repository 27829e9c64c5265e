"""Data sets on disk: where they lie, what they hold, and an id of their contents. No torch.

>>> roots = DataRoots(Path("data"))
>>> read("voc2007/test", roots).records[0].objects
>>> images("photos.tar", roots).read(0)
"""

from dataclasses import replace
from pathlib import Path

from sslbench.datasets import coco, identity, lvis, voc
from sslbench.datasets.images import (
    ImageList,
    decode_rgb,
    image_size,
    images_id,
    images_of_path,
    index_folder,
)
from sslbench.datasets.official import unofficial
from sslbench.datasets.records import Box, Dataset, ImageLabels, Object, Record
from sslbench.datasets.roots import (
    DataError,
    DataRoots,
    is_data_spec,
    layout_of,
    locate,
    only,
    parse_spec,
    spec_part,
)
from sslbench.datasets.segments import (
    IGNORED,
    ObjectMap,
    PanopticMap,
    Regions,
    SegmentMap,
    read_object_maps,
    read_panoptic,
)

__all__ = [
    "IGNORED",
    "Box",
    "DataError",
    "DataRoots",
    "Dataset",
    "ImageLabels",
    "ImageList",
    "Object",
    "ObjectMap",
    "PanopticMap",
    "Record",
    "Regions",
    "SegmentMap",
    "content_id",
    "decode_rgb",
    "image_labels",
    "image_size",
    "images",
    "images_id",
    "is_data_spec",
    "labelled_splits",
    "layout_of",
    "locate",
    "only",
    "parse_spec",
    "read",
    "segment_maps",
    "spec_part",
]


def read(spec: str, roots: DataRoots) -> Dataset:
    """Read the annotations of a split and check that every image is there.

    Raises:
        DataError: something is missing or broken; nothing is skipped silently.
    """
    data = _read(spec, roots)
    return replace(data, unofficial=unofficial(data))


def _read(spec: str, roots: DataRoots) -> Dataset:
    dataset, split = parse_spec(spec)
    folder = locate(dataset, roots)
    match layout_of(dataset).family:
        case "voc":
            return voc.read_voc(dataset, split, folder)
        case "coco":
            return coco.read_coco(dataset, split, folder)
        case "lvis":
            return lvis.read_lvis(dataset, split, folder, locate("coco2017", roots))


def segment_maps(spec: str, roots: DataRoots) -> tuple[SegmentMap, ...]:
    """List the images of a split that have a PNG of segments: COCO's panoptic, VOC's objects.

    Raises:
        DataError: the split has none.
    """
    dataset, split = parse_spec(spec)
    _require_segments(spec)
    folder = locate(dataset, roots)
    if layout_of(dataset).family == "coco":
        return read_panoptic(split, folder)
    return read_object_maps(dataset, split, folder)


def _require_segments(spec: str) -> None:
    if layout_of(parse_spec(spec)[0]).family == "lvis":
        raise DataError(f"{spec} has no PNGs of segments; COCO's panoptic and VOC have")


def image_labels(spec: str, roots: DataRoots) -> ImageLabels:
    """Read a VOC split's image-level labels: 1 present, -1 absent, 0 only difficult instances."""
    _require_labels(spec)
    dataset, split = parse_spec(spec)
    return voc.read_image_labels(dataset, split, locate(dataset, roots))


def labelled_splits(train: str, test: str, roots: DataRoots) -> tuple[ImageLabels, ImageLabels]:
    """Read the image-level labels of two splits whose classes are the same, in the same order.

    Raises:
        DataError: a split is missing or has no such labels, or the classes differ.
    """
    sides = image_labels(train, roots), image_labels(test, roots)
    names = [side.classes for side in sides]
    if names[0] != names[1]:
        lacking = sorted(set(names[0]) ^ set(names[1]))
        raise DataError(
            f"{train} and {test} do not have the same classes; only in one: {lacking}. "
            "Both need a list ImageSets/Main/<class>_<split>.txt for every class"
        )
    return sides


def _require_labels(spec: str) -> None:
    if layout_of(parse_spec(spec)[0]).family != "voc":
        raise DataError(f"{spec} has no image-level labels; they come from VOC's per-class lists")


def images(source: str | Path, roots: DataRoots) -> ImageList:
    """List the images of a split (``coco2017/train``), a folder, a ``.txt`` list or a ``.tar``.

    For a split, ``name(i)`` is the file name of ``Record.path``. A COCO split counts all images of
    its folder, annotated or not.
    """
    text = str(source)
    if not is_data_spec(text):
        return images_of_path(Path(source))
    dataset, split = parse_spec(text)
    folder = locate(dataset, roots)
    match layout_of(dataset).family:
        case "voc":
            paths = voc.image_paths(dataset, split, folder)
            return ImageList(folder / "JPEGImages", tuple(sorted(path.name for path in paths)))
        case "coco":
            image_folder = coco.coco_images(split, folder)
            return ImageList(image_folder, tuple(sorted(index_folder(image_folder).values())))
        case "lvis":
            coco_folder = locate("coco2017", roots)
            records = lvis.read_lvis(dataset, split, folder, coco_folder).records
            names = sorted(record.path.relative_to(coco_folder).as_posix() for record in records)
            return ImageList(coco_folder, tuple(names))


def content_id(spec: str, roots: DataRoots) -> str:
    """Hash what a split, or a path of images, contains: the images and the annotations' bytes.

    Independent of where the data lies and when it was copied there. ``coco2017/train:images``
    counts the images alone and needs no annotations; ``voc2007/test:labels`` counts the images
    and what ``image_labels`` reads; ``coco2017/val:segments`` those and what ``segment_maps``
    reads, PNGs by their names and sizes.
    """
    if not is_data_spec(spec) or spec_part(spec) == "images":
        return images_id(images(spec, roots))
    if spec_part(spec) == "segments":
        _require_segments(spec)  # before an unknown folder is complained of
    dataset, split = parse_spec(spec)
    folder = locate(dataset, roots)
    if spec_part(spec) == "labels":
        _require_labels(spec)
        return identity.voc_labels_id(dataset, split, folder)
    if spec_part(spec) == "segments":
        if layout_of(dataset).family == "coco":
            return identity.panoptic_id(split, folder)
        return identity.object_maps_id(dataset, split, folder)
    match layout_of(dataset).family:
        case "voc":
            return identity.voc_id(dataset, split, folder)
        case "coco":
            return identity.coco_id(split, folder)
        case "lvis":
            return identity.lvis_id(dataset, split, folder, locate("coco2017", roots))
