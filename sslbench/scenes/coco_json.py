"""Scenes as COCO 2017 instances: polygons along pixel edges, RLE crowds, category ids with gaps."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sslbench.scenes.contours import bounds, polygons, rle
from sslbench.scenes.drawing import SHAPE_NAMES, Scene

# As in COCO the ids have gaps: a reader must not take them for indices.
CATEGORY_IDS = tuple(rank + 1 + rank // 3 for rank in range(len(SHAPE_NAMES)))
HEAD = {
    "info": {"description": "sslbench scenes", "version": "1.0", "year": 2017},
    "licenses": [{"id": 1, "name": "Apache License 2.0", "url": ""}],
}


class Entry(NamedTuple):
    """One picture's image entry and one row per object: its annotation, shape and texture."""

    image: dict[str, Any]
    rows: list["Row"]


class Row(NamedTuple):
    """One object: what every JSON says of it, and what it is."""

    outline: dict[str, Any]  # id, image_id, bbox, area, segmentation
    shape: int
    texture: int
    crowd: bool


def entry(scene: Scene, number: int, folder: str) -> Entry:
    """Describe a picture ``folder/000000000NUM.jpg``."""
    height, width, _ = scene.pixels_HW3.shape
    file_name = f"{number:012d}.jpg"
    image = {
        "license": 1,
        "file_name": file_name,
        "coco_url": f"http://images.cocodataset.org/{folder}/{file_name}",
        "height": height,
        "width": width,
        "id": number,
    }
    rows = []
    for index, instance in enumerate(scene.instances):
        x0, y0, x1, y1 = bounds(instance.mask_HW)
        outline = {
            "id": number * 100 + index,
            "image_id": number,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": int(instance.mask_HW.sum()),
            "segmentation": rle(instance.mask_HW) if instance.crowd else polygons(instance.mask_HW),
        }
        rows.append(Row(outline, instance.shape, instance.texture, instance.crowd))
    return Entry(image, rows)


def write_instances(path: Path, entries: Sequence[Entry]) -> None:
    """Write an instances file."""
    annotations = [
        {**row.outline, "category_id": CATEGORY_IDS[row.shape], "iscrowd": int(row.crowd)}
        for found in entries
        for row in found.rows
    ]
    categories = [
        {"supercategory": "shape", "id": number, "name": name}
        for number, name in zip(CATEGORY_IDS, SHAPE_NAMES, strict=True)
    ]
    write_content(path, [found.image for found in entries], annotations, categories)


def write_content(
    path: Path,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: list[dict[str, Any]],
) -> None:
    """Write the frame that COCO and LVIS share."""
    content = {**HEAD, "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content, separators=(",", ":")))
