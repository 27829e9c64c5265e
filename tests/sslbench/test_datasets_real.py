"""The readers on real VOC, COCO and LVIS files."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from sslbench.datasets import DataRoots, content_id, decode_rgb, image_labels, images, read


def test_real_voc_boxes_equal_the_official_ones(real_data: Path):
    official = json.loads((real_data / "voc/voc2007_test_full_annotations.json").read_text())
    data = read("voc2007/test", DataRoots(real_data / "voc/originals"))
    assert len(data.records) == 9 and data.classes == tuple(official["classes"])
    for record in data.records:
        found = [[o.category, *o.box, int(o.difficult)] for o in record.objects]
        rows = [
            [c, x0 - 1, y0 - 1, x1, y1, d]
            for c, x0, y0, x1, y1, d, _ in official["images"][record.image_id]["objects"]
        ]
        assert found == rows


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_voc_lists_agree_with_the_boxes(real_data: Path, split: str):
    roots = DataRoots(real_data)
    data, labels = read(f"voc2007/{split}", roots), image_labels(f"voc2007/{split}", roots)
    assert len(data.records) == 1250 and data.classes == labels.classes
    expected = np.full_like(labels.matrix, -1)
    for row, record in enumerate(data.records):
        assert labels.paths[row] == record.path
        for item in record.objects:
            expected[row, item.category] = max(
                expected[row, item.category], 0 if item.difficult else 1
            )
    assert (expected == labels.matrix).all()
    person = labels.classes.index("person")
    assert (labels.matrix[:, person] == 1).sum() == {"train": 508, "val": 495}[split]


def test_real_voc2012_has_official_classes_without_lists(real_data: Path):
    data = read("voc2012/trainval", DataRoots(real_data / "voc/originals"))
    assert data.classes[0] == "aeroplane" and len(data.classes) == 20 and len(data.records) == 4


@pytest.mark.parametrize(
    ("split", "num_images", "num_objects"), [("train", 138, 1399), ("val", 110, 1036)]
)
def test_real_coco_counts_and_pixels(
    real_data: Path, split: str, num_images: int, num_objects: int
):
    data = read(f"coco2017/{split}", DataRoots(real_data))
    assert len(data.records) == num_images and len(data.classes) == 80
    assert data.category_ids[-1] == 90 and data.classes[-1] == "toothbrush"
    assert sum(len(record.objects) for record in data.records) == num_objects
    assert any(item.crowd for record in data.records for item in record.objects)
    for record in data.records[:3]:
        pixels = decode_rgb(record.path.read_bytes(), record.path.name)
        assert pixels.shape == (record.height, record.width, 3)


def test_all_real_coco_images_count_for_pretraining(real_data: Path):
    assert len(images("coco2017/train", DataRoots(real_data))) == 181


def test_real_lvis_images_are_found_by_coco_url(real_data: Path, tmp_path: Path):
    source = real_data / "lvis/lvis_v0.5_subset_with_images.json"
    (tmp_path / "lvis_v1_val.json").write_bytes(source.read_bytes())
    data = read("lvis_v1/val", DataRoots(real_data, {"lvis_v1": tmp_path}))
    assert len(data.records) == 5 and all(record.path.is_file() for record in data.records)


def test_ids_and_readers_are_quick_on_real_data(real_data: Path):
    began = time.perf_counter()
    for spec in ("voc2007/train", "coco2017/train", "coco2017/val"):
        content_id(spec, DataRoots(real_data))
        read(spec, DataRoots(real_data))
    assert time.perf_counter() - began < 20
