"""The picture beside the numbers: what is drawn, in which colour, of which image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslbench.datasets import Dataset, Object, Record
from transfer.engines.masks import encode
from transfer.pictures import HEIGHT, _readable_on, draw_detections, pictured

SQUARE = [60.0, 40.0, 100.0, 40.0, 100.0, 80.0, 60.0, 80.0]


def black_images(folder: Path, number: int) -> Dataset:
    """Black images with one object each, of the category 90, the second of two."""
    records = []
    for index in range(number):
        path = folder / f"{index}.png"
        Image.new("RGB", (120, 120)).save(path)
        item = Object(1, (60.0, 40.0, 100.0, 80.0), 1600, False, False, [SQUARE], index + 1)
        records.append(Record(index, path, 120, 120, (item,)))
    return Dataset("coco2017", "val", ("a", "b"), (3, 90), tuple(records), None)


def found(image_id: int, **changes: object) -> dict:
    mask = np.zeros((120, 120), np.uint8)
    mask[40:80, 60:100] = 1
    row = {"image_id": image_id, "category_id": 90, "bbox": [60, 40, 40, 40], "score": 0.9}
    return row | {"segmentation": encode(mask)} | changes


def halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ground truth and predictions, without the text over the outline."""
    pixels = np.array(Image.open(path).convert("RGB"))
    return pixels[82:, :HEIGHT], pixels[82:, -HEIGHT:]


def test_the_same_object_looks_the_same_on_both_sides(tmp_path: Path):
    dataset = black_images(tmp_path, 1)
    draw_detections(tmp_path / "p.png", dataset, dataset.records, [found(0)])
    truth, predicted = halves(tmp_path / "p.png")
    assert (truth == predicted).all()
    inside, outside = truth[120 - 82, 160], truth[200 - 82, 20]
    assert inside.max() > 50 and outside.max() == 0  # the mask is tinted, category id 90 and all


@pytest.mark.parametrize(
    "row",
    [found(1), found(0, score=0.1), found(0, segmentation=encode(np.zeros((120, 120))))],
    ids=["of another image", "weaker than three others", "empty"],
)
def test_what_is_not_to_be_seen_is_not_drawn(row: dict, tmp_path: Path):
    dataset = black_images(tmp_path, 2)
    corner = {"bbox": [0, 0, 2, 2], "segmentation": encode(np.zeros((120, 120)))}
    rows = [found(0, score=0.5, **corner) for _ in range(3)]
    draw_detections(tmp_path / "p.png", dataset, dataset.records[:1], [*rows, row])
    assert halves(tmp_path / "p.png")[1][120 - 82, 160].max() == 0


def test_pictured_images_are_spread_over_the_data(tmp_path: Path):
    dataset = black_images(tmp_path, 9)
    assert [record.image_id for record in pictured(dataset, 3)] == [0, 4, 8]
    assert len(pictured(dataset, 20)) == 9 and pictured(dataset, 0) == ()


def test_a_name_is_readable_on_every_colour_and_whole_at_the_edge(tmp_path: Path):
    assert [_readable_on(colour) for colour in ("#000075", "#e6194b")] == ["white", "white"]
    assert [_readable_on(colour) for colour in ("#46f0f0", "#ffe119")] == ["black", "black"]
    record = black_images(tmp_path, 1).records[0]
    corner = Object(0, (110.0, 60.0, 120.0, 80.0), 200, False, False, None, 1)
    dataset = Dataset(
        "coco2017", "val", ("w" * 12,), (1,), (replace(record, objects=(corner,)),), None
    )
    draw_detections(tmp_path / "p.png", dataset, dataset.records, [])
    label = np.array(Image.open(tmp_path / "p.png").convert("RGB"))[109:120, :HEIGHT]
    assert (label.max(axis=(0, 2)) > 0).sum() > 70  # columns: the name begins left of its box
