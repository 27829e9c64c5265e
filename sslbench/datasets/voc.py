"""The VOC devkit: XML boxes with ``difficult``, image labels from the lists of ImageSets/Main."""

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np

from sslbench.datasets.annotations import Tally
from sslbench.datasets.images import index_folder
from sslbench.datasets.records import Box, Dataset, ImageLabels, Object, Record
from sslbench.datasets.roots import DataError, shorten, unknown_split

OFFICIAL_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


def read_voc(dataset: str, split: str, folder: Path) -> Dataset:
    """Read one split of a devkit folder (the one that holds JPEGImages)."""
    classes = class_names(folder, split)
    index_of = {name: index for index, name in enumerate(classes)}
    tally = Tally()
    paths = image_paths(dataset, split, folder)
    records = tuple(_read_record(folder, path, index_of, tally) for path in paths)
    return Dataset(
        name=dataset,
        split=split,
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        records=records,
        annotation_path=None,
        notes=tally.lines(f"{dataset}/{split}"),
    )


def image_paths(dataset: str, split: str, folder: Path) -> tuple[Path, ...]:
    """Return the images of a split, sorted by id.

    Raises:
        DataError: no such split, or a listed image that is not there.
    """
    lists = folder / "ImageSets" / "Main"
    list_path = lists / f"{split}.txt"
    if "_" in split or not list_path.is_file():
        available = (p.stem for p in lists.glob("*.txt") if "_" not in p.stem)
        raise unknown_split(dataset, split, available, lists)
    ids = [line.split()[0] for line in _lines(list_path) if line.strip()]
    if not ids:
        raise DataError(f"{list_path} lists no image")
    twice = [image_id for image_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{list_path} lists {shorten(twice)} more than once")
    images = index_folder(folder / "JPEGImages")
    absent = [image_id for image_id in ids if image_id not in images]
    if absent:
        raise DataError(
            f"{list_path} names {len(absent)} images that are not in {folder / 'JPEGImages'}: "
            f"{shorten(absent)}. Complete the images or remove these lines"
        )
    return tuple(folder / "JPEGImages" / images[image_id] for image_id in sorted(ids))


def _lines(list_path: Path) -> list[str]:
    try:
        return list_path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"list {list_path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"list {list_path} is not text in UTF-8 ({error.reason})") from None


def class_list_paths(folder: Path, split: str) -> dict[str, Path]:
    """Map class -> ``<class>_<split>.txt``, sorted by class; empty without such lists."""
    # The class "train" makes "train_val.txt": the last underscore decides.
    paths = (folder / "ImageSets" / "Main").glob(f"*_{split}.txt")
    return {path.stem.rsplit("_", 1)[0]: path for path in sorted(paths)}


def class_names(folder: Path, split: str) -> tuple[str, ...]:
    """Return the classes of the split's lists, else of any split's, else the official twenty."""
    of_split = class_list_paths(folder, split)
    of_any = {p.stem.rsplit("_", 1)[0] for p in (folder / "ImageSets" / "Main").glob("*_*.txt")}
    return tuple(of_split or sorted(of_any) or OFFICIAL_CLASSES)


def _read_record(folder: Path, image_path: Path, index_of: dict[str, int], tally: Tally) -> Record:
    xml_path = folder / "Annotations" / f"{image_path.stem}.xml"
    try:
        root = ElementTree.parse(xml_path).getroot()
    except FileNotFoundError:
        raise DataError(f"{image_path} has no annotation: {xml_path} is not there") from None
    except OSError as error:
        raise DataError(f"annotation {xml_path} cannot be read: {error.strerror}") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: its encoding
        raise DataError(f"{xml_path} is not valid XML ({error}); was it cut short?") from None
    width, height = (int(_number(root, f"size/{side}", xml_path)) for side in ("width", "height"))
    if width < 1 or height < 1:
        raise DataError(f"{xml_path}: size is {width}x{height}; both must be at least 1 pixel")
    objects = [
        _read_object(element, number, xml_path, index_of)
        for number, element in enumerate(root.findall("object"), start=1)
    ]
    for item in objects:
        if not tally.count_box(item.box, height, width):
            raise DataError(
                f"{xml_path}: object {item.annotation_id} ({list(index_of)[item.category]}) lies "
                f"wholly outside its image of {width} x {height} pixels: {_corners(item.box)}. "
                "Unpack the file again, or mend or drop the object"
            )
    return Record(image_path.stem, image_path, height, width, tuple(objects))


def _read_object(
    element: ElementTree.Element, number: int, xml_path: Path, index_of: dict[str, int]
) -> Object:
    name = _text(element, "name", xml_path)
    if name not in index_of:
        raise DataError(
            f"{xml_path}: object {number} is {name!r}; the classes are {', '.join(index_of)}"
        )
    x_min, y_min, x_max, y_max = (
        _number(element, f"bndbox/{edge}", xml_path) for edge in ("xmin", "ymin", "xmax", "ymax")
    )
    # The devkit counts pixels from 1 and includes the last one.
    box: Box = (x_min - 1, y_min - 1, x_max, y_max)
    width, height = box[2] - box[0], box[3] - box[1]
    if not (width > 0 and height > 0):
        raise DataError(
            f"{xml_path}: object {number} ({name}) has the empty box {_corners(box)}; "
            "mend or drop the object"
        )
    # As in the devkit, an object without the flag is not difficult.
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise DataError(f"{xml_path}: object {number} ({name}) has <difficult> {difficult!r}")
    return Object(index_of[name], box, width * height, False, difficult == "1", None, number)


def _corners(box: Box) -> str:
    """Say a box as its XML does."""
    return f"xmin={box[0] + 1:g} ymin={box[1] + 1:g} xmax={box[2]:g} ymax={box[3]:g}"


def _text(element: ElementTree.Element, key: str, xml_path: Path) -> str:
    text = element.findtext(key)
    if text is None or not text.strip():
        raise DataError(
            f"{xml_path}: <{element.tag}> has no <{key.replace('/', '><')}>; unpack or mend it"
        )
    return text.strip()


def _number(element: ElementTree.Element, key: str, xml_path: Path) -> float:
    text = _text(element, key, xml_path)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{xml_path}: <{key.replace('/', '><')}> is {text!r}, not a number")
    return value


def read_image_labels(dataset: str, split: str, folder: Path) -> ImageLabels:
    """Read 1 / -1 / 0 per image and class; from the boxes where there are no per-class lists."""
    lists = class_list_paths(folder, split)
    if not lists:
        return _labels_of_boxes(read_voc(dataset, split, folder))
    paths = image_paths(dataset, split, folder)
    columns = [_read_class_list(path, [p.stem for p in paths]) for path in lists.values()]
    return ImageLabels(paths, tuple(lists), np.array(columns, dtype=np.int8).T.copy())


def _read_class_list(list_path: Path, ids: list[str]) -> list[int]:
    labels: dict[str, int] = {}
    for number, line in enumerate(_lines(list_path), start=1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 2 or fields[1] not in ("1", "0", "-1"):
            raise DataError(
                f"{list_path} line {number}: {line!r} is not an image id and 1, 0 or -1"
            )
        labels[fields[0]] = int(fields[1])
    absent = [image_id for image_id in ids if image_id not in labels]
    if absent:
        raise DataError(f"{list_path} has no label for {len(absent)} images: {shorten(absent)}")
    return [labels[image_id] for image_id in ids]


def _labels_of_boxes(data: Dataset) -> ImageLabels:
    matrix = np.full((len(data.records), len(data.classes)), -1, dtype=np.int8)
    for row, record in enumerate(data.records):
        for item in record.objects:
            matrix[row, item.category] = max(matrix[row, item.category], 0 if item.difficult else 1)
    return ImageLabels(tuple(record.path for record in data.records), data.classes, matrix)
