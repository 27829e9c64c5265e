"""Tiny hand-written data sets for the tests of the readers."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>"
    "<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)


def jpeg(size: tuple[int, int] = (8, 6), colour: str = "red") -> bytes:
    """Encode a plain picture."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def write_voc(root: Path) -> Path:
    """Write VOC2007 with test images 000007 (a cat, a difficult dog) and 000002 (nothing)."""
    folder = root / "VOCdevkit/VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    cat = OBJECT.format(name="cat", difficult=0, box=(1, 2, 3, 4))
    dog = OBJECT.format(name="dog", difficult=1, box=(2, 1, 8, 6))
    for stem, objects in (("000007", cat + dog), ("000002", "")):
        (folder / f"JPEGImages/{stem}.jpg").write_bytes(jpeg())
        write_xml(folder, stem, objects)
    lists = folder / "ImageSets/Main"
    (lists / "test.txt").write_text("000007\n000002\n")
    (lists / "cat_test.txt").write_text("000007  1\n000002 -1\n")
    (lists / "dog_test.txt").write_text("000007  0\n000002 -1\n")
    return folder


def write_xml(folder: Path, stem: str, objects: str, size: str | None = None) -> Path:
    """Write one annotation file."""
    size = size or "<size><width>8</width><height>6</height><depth>3</depth></size>"
    path = folder / f"Annotations/{stem}.xml"
    path.write_text(f"<annotation>{size}{objects}</annotation>")
    return path


def coco_content() -> dict[str, Any]:
    """Return a small instances file: categories and images out of order, a polygon and a crowd."""
    image = {"height": 6, "width": 8}
    crowd = {"counts": [0, 6, 42], "size": [6, 8]}
    return {
        "images": [
            {"id": 9, "file_name": "000000000009.jpg", **image},
            {"id": 4, "file_name": "000000000004.jpg", **image},
        ],
        "annotations": [
            {
                "id": 70,
                "image_id": 9,
                "category_id": 18,
                "bbox": [1, 2, 3, 4],
                "area": 12,
                "iscrowd": 0,
                "segmentation": [[1, 2, 4, 2, 4, 6, 1, 6]],
            },
            {
                "id": 71,
                "image_id": 9,
                "category_id": 3,
                "bbox": [0, 0, 1, 6],
                "area": 6,
                "iscrowd": 1,
                "segmentation": crowd,
            },
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
    }


def write_coco(root: Path, content: dict[str, Any] | None = None) -> Path:
    """Write coco/val2017 with its images; ``content`` replaces the instances file."""
    folder = root / "coco"
    for name in ("annotations", "val2017", "train2017"):
        (folder / name).mkdir(parents=True)
    for number in (4, 9):
        (folder / f"val2017/{number:012d}.jpg").write_bytes(jpeg())
    (folder / "train2017/000000000005.jpg").write_bytes(jpeg())
    path = folder / "annotations/instances_val2017.json"
    path.write_text(json.dumps(content or coco_content()))
    return folder


def lvis_content() -> dict[str, Any]:
    """Return a small LVIS v1 val file whose images lie in val2017 and train2017."""
    content = coco_content()
    places = {9: "val2017/000000000009.jpg", 4: "train2017/000000000005.jpg"}
    for image in content["images"]:
        del image["file_name"]
        image["coco_url"] = f"http://images.cocodataset.org/{places[image['id']]}"
        image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
    for category, frequency in zip(content["categories"], "rf", strict=True):
        category["frequency"] = frequency
    return content


def write_lvis(
    root: Path, content: dict[str, Any] | None = None, name: str = "lvis_v1_val.json"
) -> Path:
    """Write an LVIS file; ``content`` replaces its content."""
    (root / "lvis").mkdir(exist_ok=True)
    path = root / "lvis" / name
    path.write_text(json.dumps(content or lvis_content()))
    return path
