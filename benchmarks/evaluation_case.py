"""Synthetic annotations and predictions, and one timed evaluation of them. No torch.

    python -m benchmarks.evaluation_case FOLDER FAMILY KIND MODE

It prints seconds, the most memory the process ever held and the numbers, as JSON. Modes:
``default`` reads, checks and evaluates in pieces, as the project does; ``rows`` evaluates rows that
are in memory already; ``reference`` does both with pycocotools or lvis, after ``json.load``.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sslbench.datasets import Dataset, Object, Record
from transfer.evaluators import evaluate
from transfer.evaluators.reading import Predictions

HEIGHT, WIDTH = 480, 640
CORNERS = 14  # of an outline
# categories, objects of an image, predictions of an image
SHAPES = {"coco": (80, 8, 100), "lvis": (1203, 12, 300)}
CROWD_SHARE, REDRAWN_SHARE = 0.02, 0.4
ABSENT, INEXACT_SHARE = 12, 0.1  # categories known to be absent; categories not exhaustive


def write_case(folder: Path, family: str, num_images: int) -> None:
    """Write truth.json and predictions.json; sizes from 8 to 300 pixels, two decimals of score."""
    num_categories, num_objects, num_found = SHAPES[family]
    rng = np.random.default_rng(len(family))
    categories = [
        {"id": i, "name": str(i), "frequency": "rcf"[i % 3]} for i in range(1, num_categories + 1)
    ]
    images, annotations = [], []
    folder.mkdir(parents=True)
    with (folder / "predictions.json").open("w") as file:
        for image_id in range(1, num_images + 1):
            own = _objects(rng, image_id, num_objects, num_categories)
            for item in own:
                annotations.append({"id": len(annotations) + 1, **item})
            images.append(_image(rng, image_id, own, num_categories))
            rows = _predictions(rng, own, num_found, num_categories)
            text = ",\n".join(json.dumps(row) for row in rows)
            file.write(("[\n" if image_id == 1 else ",\n") + text)
        file.write("\n]\n")
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content))


def _boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    sizes = np.exp(rng.uniform(np.log(8), np.log(300), (number, 1))) * rng.uniform(
        0.7, 1.4, (number, 2)
    )
    sizes = np.minimum(sizes, (WIDTH * 0.9, HEIGHT * 0.9))
    return np.concatenate([rng.uniform(0, (WIDTH, HEIGHT) - sizes), sizes], axis=1)


def _outlines(boxes: np.ndarray) -> list[list[float]]:
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    circle = np.stack([1 + np.cos(angles), 1 + np.sin(angles)], axis=1) / 2
    points = boxes[:, None, :2] + circle * boxes[:, None, 2:]
    return points.reshape(len(boxes), -1).round(2).tolist()


def _masks(boxes: np.ndarray) -> list[dict[str, Any]]:
    drawn = coco_mask.frPyObjects(_outlines(boxes), HEIGHT, WIDTH)
    return [{"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()} for rle in drawn]


def _objects(
    rng: np.random.Generator, image_id: int, number: int, num_categories: int
) -> list[dict[str, Any]]:
    boxes = _boxes(rng, number)
    masks = _masks(boxes)
    found = []
    for box, outline, mask in zip(boxes, _outlines(boxes), masks, strict=True):
        is_crowd = bool(rng.random() < CROWD_SHARE)
        row = {"image_id": image_id, "category_id": int(rng.integers(num_categories)) + 1}
        row |= {"bbox": box.round(2).tolist(), "iscrowd": int(is_crowd)}
        area = float(coco_mask.area(mask))
        found.append(row | {"area": area, "segmentation": mask if is_crowd else [outline]})
    return found


def _image(
    rng: np.random.Generator, image_id: int, own: list[dict[str, Any]], num_categories: int
) -> dict[str, Any]:
    present = {item["category_id"] for item in own}
    absent = set(rng.integers(1, num_categories + 1, ABSENT).tolist()) - present
    return {
        "id": image_id,
        "height": HEIGHT,
        "width": WIDTH,
        "file_name": f"{image_id}.jpg",
        "neg_category_ids": sorted(absent),
        "not_exhaustive_category_ids": [i for i in present if rng.random() < INEXACT_SHARE],
    }


def _predictions(
    rng: np.random.Generator, own: list[dict[str, Any]], number: int, num_categories: int
) -> Iterator[dict[str, Any]]:
    """Some near an object, with its category or another, the rest anywhere."""
    boxes = _boxes(rng, number)
    near = np.flatnonzero(rng.random(number) < REDRAWN_SHARE)
    of_object = rng.integers(len(own), size=number)
    true = np.array([item["bbox"] for item in own])[of_object[near]]
    boxes[near] = true + rng.normal(0, 0.1, (len(near), 4)) * true[:, 2:].min(axis=1)[:, None]
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
    categories = rng.integers(1, num_categories + 1, number)
    for index in near[rng.random(len(near)) < 0.8]:
        categories[index] = own[of_object[index]]["category_id"]
    scores = rng.random(number).round(2)  # with ties
    masks = _masks(boxes)
    for box, category, score, mask in zip(boxes, categories, scores, masks, strict=True):
        row = {"image_id": own[0]["image_id"], "category_id": int(category)}
        yield row | {"bbox": box.tolist(), "score": float(score), "segmentation": mask}


def read_truth(path: Path) -> Dataset:
    """Describe the annotations as the readers of data sets do, without pictures."""
    content = json.loads(path.read_text())
    objects: dict[int, list[Object]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        box = (x, y, x + width, y + height)
        flags = (bool(row["iscrowd"]), False)
        category = row["category_id"] - 1
        found = Object(category, box, row["area"], *flags, row["segmentation"], row["id"])
        objects[row["image_id"]].append(found)
    records = tuple(
        Record(image["id"], Path(image["file_name"]), HEIGHT, WIDTH, tuple(objects[image["id"]]))
        for image in content["images"]
    )
    ids = tuple(category["id"] for category in content["categories"])
    return Dataset("coco2017", "val", tuple(map(str, ids)), ids, records, path)


def clocks() -> np.ndarray:
    """Seconds of the wall, and of the processors by all threads."""
    return np.array([time.perf_counter(), time.process_time()])


def peak_megabytes() -> float:
    """The most that this process held; ``ru_maxrss`` would count what its parent held."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def run(folder: Path, family: Any, kind: Any, mode: str) -> dict[str, Any]:
    """Evaluate once."""
    dataset = read_truth(folder / "truth.json")
    path = folder / "predictions.json"
    began = clocks()
    if mode == "default":
        read = began
        found = Predictions(path, dataset, (kind,))
        evaluation = found.feed(lambda batches: evaluate(family, dataset, batches, (kind,)))
    else:
        rows = json.loads(path.read_text())
        read = clocks()
        choice: Any = "reference" if mode == "reference" else "default"
        evaluation = evaluate(family, dataset, [rows], (kind,), choice)
    ended = clocks()
    return {
        "from file": (ended - began).tolist(),
        "evaluation": (ended - read).tolist(),
        "MB": peak_megabytes(),
        "evaluator": evaluation.evaluator,
        "metrics": evaluation.metrics,
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), *sys.argv[2:])))
