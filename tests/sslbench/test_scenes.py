"""The built-in data: exact masks, real layouts, and a generator that can be stopped anywhere."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sslbench.datasets import (
    DataError,
    DataRoots,
    Dataset,
    content_id,
    decode_rgb,
    image_labels,
    images,
    read,
)
from sslbench.rng import numpy_generator
from sslbench.scenes import SceneSettings, generate
from sslbench.scenes.contours import bounds, polygons, rle
from sslbench.scenes.devkit import is_difficult
from sslbench.scenes.drawing import SHAPE_NAMES, SIZES, draw_scene

SMALL = SceneSettings(num_train=24, num_test=10, seed=3)
SPECS = (
    *("voc2007/train", "voc2007/val", "voc2007/trainval", "voc2007/test"),
    *("coco2017/train", "coco2017/val", "lvis_v1/train", "lvis_v1/val"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of every layout."""
    out = tmp_path_factory.mktemp("scenes") / "data"
    assert generate(out, SMALL)
    return out


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    found = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(coco_mask.merge(found) if isinstance(found, list) else found) > 0


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8, 0.95])
def test_polygons_and_runs_of_any_mask_are_exact(density: float):
    generator = np.random.default_rng(7)
    for _ in range(40):
        height, width = generator.integers(1, 30, 2).tolist()
        mask = generator.random((height, width)) < density
        if mask.any():
            assert (_decode(polygons(mask), height, width) == mask).all()
            assert (_decode(rle(mask), height, width) == mask).all()


def test_a_ring_is_cut_open_so_that_its_hole_stays_empty():
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    assert len(polygons(mask)) == 2
    assert (_decode(polygons(mask), 5, 5) == mask).all()
    assert bounds(mask) == (0, 0, 5, 5)


def test_scenes_hold_one_to_five_objects_whose_masks_are_disjoint():
    sizes, shapes = set(), Counter()
    for index in range(40):
        scene = draw_scene(numpy_generator(0, "test", index))
        height, width, _ = scene.pixels_HW3.shape
        sizes.add((width, height))
        shapes.update(instance.shape for instance in scene.instances)
        assert 1 <= len(scene.instances) <= 5
        assert sum(instance.mask_HW.astype(int) for instance in scene.instances).max() == 1
        assert all(0.25 < instance.visible <= 1 for instance in scene.instances)
    assert len(sizes) > 4 and sizes <= set(SIZES)
    assert shapes[0] > 2 * shapes[len(SHAPE_NAMES) - 1]  # a long tail


def test_hidden_and_tiny_objects_are_difficult():
    found = Counter()
    for index in range(60):
        for instance in draw_scene(numpy_generator(1, "test", index)).instances:
            found[is_difficult(instance)] += 1
            if instance.visible < 0.5:
                assert is_difficult(instance)
    assert 0 < found[True] < 0.4 * found[False]


def test_every_split_reads_and_has_the_size_asked_for(made: Path):
    sizes = {spec: len(read(spec, DataRoots(made)).records) for spec in SPECS}
    assert [sizes[spec] for spec in SPECS[:6]] == [12, 12, 24, 10, 24, 10]
    assert sizes["lvis_v1/train"] + sizes["lvis_v1/val"] == 34


def test_no_picture_is_in_two_places(made: Path):
    hashes = Counter()
    for spec in ("voc2007/trainval", "voc2007/test", "coco2017/train", "coco2017/val"):
        found = images(spec, DataRoots(made))
        hashes.update(hashlib.sha256(found.read(i)).hexdigest() for i in range(len(found)))
    assert len(hashes) == 68 and set(hashes.values()) == {1}


@pytest.mark.parametrize("spec", ["coco2017/train", "coco2017/val", "lvis_v1/train", "lvis_v1/val"])
def test_areas_and_boxes_are_those_of_the_masks(made: Path, spec: str):
    for record in read(spec, DataRoots(made)).records:
        pixels = decode_rgb(record.path.read_bytes(), record.path.name)
        assert pixels.shape == (record.height, record.width, 3)
        for item in record.objects:
            mask = _decode(item.segmentation, record.height, record.width)
            assert mask.sum() == item.area > 0
            assert bounds(mask) == item.box
            assert isinstance(item.segmentation, dict) == item.crowd


def test_voc_labels_agree_with_the_boxes(made: Path):
    for split in ("train", "val", "trainval", "test"):
        spec, roots = f"voc2007/{split}", DataRoots(made)
        data, labels = read(spec, roots), image_labels(spec, roots)
        assert data.classes == labels.classes and set(data.classes) == set(SHAPE_NAMES)
        for record, row in zip(data.records, labels.matrix, strict=True):
            for index in range(len(data.classes)):
                found = [item.difficult for item in record.objects if item.category == index]
                assert row[index] == (-1 if not found else int(not all(found)))


def test_pycocotools_loads_the_instances(made: Path, capsys: pytest.CaptureFixture[str]):
    from pycocotools.coco import COCO

    coco = COCO(str(made / "coco/annotations/instances_train2017.json"))
    assert len(coco.getImgIds()) == 24 and len(coco.getCatIds()) == len(SHAPE_NAMES)
    assert max(coco.getCatIds()) > len(SHAPE_NAMES)  # ids with gaps
    assert sum(row["iscrowd"] for row in coco.anns.values()) > 0
    for row in coco.anns.values():
        assert coco.annToMask(row).sum() == row["area"]


def test_the_lvis_package_loads_a_federated_long_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 still uses it
    from lvis import LVIS

    generate(tmp_path / "data", SceneSettings(num_train=80, num_test=20))
    train = LVIS(str(tmp_path / "data/lvis/lvis_v1_train.json"))
    val = LVIS(str(tmp_path / "data/lvis/lvis_v1_val.json"))
    assert {category["frequency"] for category in train.cats.values()} == {"r", "c", "f"}
    assert train.cats == val.cats and not set(train.imgs) & set(val.imgs)
    folders = {image["coco_url"].split("/")[-2] for image in val.imgs.values()}
    assert folders == {"train2017", "val2017"}
    assert any(image["not_exhaustive_category_ids"] for image in train.imgs.values())
    counts = Counter(row["category_id"] for row in train.anns.values())
    for number, category in train.cats.items():
        assert category["instance_count"] == counts[number]
    for split in (train, val):
        _check_federation(split)


def _check_federation(split: Any) -> None:
    for number, image in split.imgs.items():
        present = {row["category_id"] for row in split.img_ann_map[number]}
        assert "file_name" not in image and image["neg_category_ids"]
        assert not present & set(image["neg_category_ids"])
        assert set(image["not_exhaustive_category_ids"]) <= present


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(made: Path, tmp_path: Path):
    generate(tmp_path / "again", SMALL)
    assert _hash(tmp_path / "again") == _hash(made)
    generate(tmp_path / "other", SceneSettings(24, 10, seed=4))
    assert content_id("voc2007/test", DataRoots(tmp_path / "other")) != content_id(
        "voc2007/test", DataRoots(made)
    )


def test_a_second_call_returns_at_once_and_touches_nothing(made: Path):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    began = time.perf_counter()
    assert not generate(made, SMALL)
    assert time.perf_counter() - began < 1
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_other_settings_in_the_same_folder_are_refused_with_the_way_out(made: Path):
    with pytest.raises(DataError, match=r"num_train=24 .* choose another folder, or delete"):
        generate(made, SceneSettings(num_train=30, num_test=10, seed=3))


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="holds something else"):
        generate(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_train": 0}, "num_train must be at least 2, got 0"),
        ({"num_test": -1}, "num_test must be at least 1, got -1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_sizes_must_be_positive(settings: dict[str, int], message: str):
    with pytest.raises(DataError, match=message):
        SceneSettings(**settings)


def test_a_killed_run_leaves_nothing_in_place_and_the_next_one_finishes(made: Path, tmp_path: Path):
    out = tmp_path / "data"
    command = [sys.executable, "-m", "sslbench.scenes", "--out", str(out)]
    command += ["--train", "24", "--test", "10", "--seed", "3"]
    work = tmp_path / ".data.partial"
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while len(list(work.rglob("*.jpg"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists() and work.exists()
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True)
    assert _hash(out) == _hash(made) and not work.exists()


def test_the_manifest_says_how_the_folder_was_made(made: Path):
    manifest = json.loads((made / "scenes.json").read_text())
    assert {key: manifest[key] for key in ("num_train", "num_test", "seed")} == {
        "num_train": 24,
        "num_test": 10,
        "seed": 3,
    }


def test_records_and_image_lists_name_the_same_files(made: Path):
    data: Dataset = read("coco2017/train", DataRoots(made))
    names = images("coco2017/train", DataRoots(made)).names
    assert sorted(record.path.name for record in data.records) == list(names)
