"""Random annotations and predictions with all that an evaluator may stumble over."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sslbench.datasets import Dataset, Object, Record

Content = dict[str, Any]
BORDERS = (32.0**2, 96.0**2, 1024.0001, 9216 - 1e-9)  # areas where a size ends


def random_content(seed: int, family: str, num_images: int = 8, num_categories: int = 6) -> Content:
    """Crowds, polygons in parts, both forms of RLE, empty images, a class without objects."""
    rng = np.random.default_rng(seed)
    ids = sorted(rng.choice(np.arange(1, 90), num_categories, replace=False).tolist())
    categories = [{"id": i, "name": f"class {i}", "frequency": "rcf"[i % 3]} for i in ids]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in sorted(rng.choice(9999, num_images, replace=False).tolist()):
        height, width = map(int, rng.integers(60, 250, 2))
        image = {"id": image_id, "height": height, "width": width, "file_name": f"{image_id}.jpg"}
        num = 0 if rng.random() < 0.15 else int(rng.integers(1, 12))
        own = [_annotation(rng, image, ids[:-1], family) for _ in range(num)]
        for row in own:
            annotations.append({"id": len(annotations) + 1, **row})
        present = sorted({row["category_id"] for row in own})
        absent = [i for i in ids if i not in present]
        image["neg_category_ids"] = [i for i in absent if rng.random() < 0.5]
        image["not_exhaustive_category_ids"] = [i for i in present if rng.random() < 0.4]
        images.append(image)
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(
    rng: np.random.Generator, image: dict[str, Any], ids: list[int], family: str
) -> dict[str, Any]:
    height, width = image["height"], image["width"]
    high = [20, 20] if rng.random() < 0.4 else [width * 0.7, height * 0.7]
    w, h = rng.uniform(1, high)
    x, y = rng.uniform(0, [width - w, height - h])
    is_crowd = bool(rng.random() < 0.15)
    outline: Any
    if is_crowd or rng.random() < 0.2:
        pixels = _filled(height, width, (x, y, w, h)) & (rng.random((height, width)) < 0.8)
        outline = _compressed(pixels) if rng.random() < 0.5 else _runs(pixels)
        area = float(pixels.sum())
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        points = [x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))]
        outline = [np.stack(points, axis=1).ravel().round(2).tolist()]
        if rng.random() < 0.2:
            outline.append([x, y, x + w / 3, y, x + w / 3, y + h / 3])
        drawn = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
        area = float(coco_mask.area(drawn))
    if rng.random() < 0.1:
        area = float(rng.choice(BORDERS))
    row = {"image_id": image["id"], "category_id": int(rng.choice(ids)), "area": area}
    row |= {"bbox": [round(float(v), 2) for v in (x, y, w, h)], "segmentation": outline}
    row |= {"iscrowd": int(is_crowd)}  # LVIS has none, and its package takes no notice
    # COCO's package overwrites it, that of LVIS heeds it; the files of neither have it
    return row | ({"ignore": 1} if rng.random() < 0.05 else {})


def random_rows(
    content: Content, seed: int, most: int = 60, steps: int | None = None
) -> list[dict[str, Any]]:
    """Predictions near the objects and far from them, some of size 0.

    Args:
        most: of an image; each gets a random number below.
        steps: scores are multiples of 1/steps, which makes ties.
    """
    rng = np.random.default_rng([seed, 1])
    ids = [category["id"] for category in content["categories"]]
    rows = []
    for image in content["images"]:
        own = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        num = 0 if rng.random() < 0.15 else int(rng.integers(0, most))
        for _ in range(num):
            rows.append(_row(rng, image, own, ids))
            if steps:
                rows[-1]["score"] = round(rows[-1]["score"] * steps) / steps
    if rng.random() < 0.5:
        rng.shuffle(rows)  # type: ignore[arg-type]
    return rows


def _row(
    rng: np.random.Generator, image: dict[str, Any], own: list[dict[str, Any]], ids: list[int]
) -> dict[str, Any]:
    height, width = image["height"], image["width"]
    category = int(rng.choice(ids))
    box = np.array([*rng.uniform(0, [width * 0.8, height * 0.8]), *rng.uniform(1, 60, 2)])
    if own and rng.random() < 0.7:
        item = own[rng.integers(len(own))]
        box = np.array(item["bbox"]) + rng.normal(0, 1, 4) * rng.choice([0, 0.3, 1.5, 6])
        box[2:] = np.abs(box[2:])
        category = item["category_id"] if rng.random() < 0.8 else category
    if rng.random() < 0.05:
        box[int(rng.integers(2, 4))] = 0
    pixels = _filled(height, width, tuple(box))
    if rng.random() < 0.3:
        pixels &= rng.random((height, width)) < 0.9
    row = {"image_id": image["id"], "category_id": category, "bbox": box.tolist()}
    return row | {"score": float(rng.random()), "segmentation": _compressed(pixels)}


def _filled(height: int, width: int, box: tuple[float, ...]) -> np.ndarray:
    x, y, w, h = box
    pixels = np.zeros((height, width), bool)
    pixels[max(0, int(y)) : max(0, int(y + h)), max(0, int(x)) : max(0, int(x + w))] = True
    return pixels


def _compressed(pixels: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}


def _runs(pixels: np.ndarray) -> dict[str, Any]:
    flat = np.concatenate([[0], pixels.ravel(order="F").astype(int)])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [pixels.size]]))
    return {"size": list(pixels.shape), "counts": counts.tolist()}


def dataset_of(content: Content, path: Path) -> Dataset:
    """Write the annotations and describe them as the readers do."""
    path.write_text(json.dumps(content))
    ids = sorted(category["id"] for category in content["categories"])
    names = {category["id"]: category.get("name", "") for category in content["categories"]}
    records = []
    for image in sorted(content["images"], key=lambda image: image["id"]):
        own = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        objects = tuple(
            Object(
                category=ids.index(row["category_id"]),
                box=(*row["bbox"][:2], *np.add(row["bbox"][:2], row["bbox"][2:]).tolist()),
                area=row.get("area", 0.0),
                crowd=bool(row.get("iscrowd", 0)),
                difficult=False,
                segmentation=row.get("segmentation"),
                annotation_id=row["id"],
            )
            for row in own
        )
        size = image["height"], image["width"]
        records.append(Record(image["id"], Path(f"{image['id']}.jpg"), *size, objects))
    classes = tuple(names[i] for i in ids)
    return Dataset("coco2017", "val", classes, tuple(ids), tuple(records), path)
