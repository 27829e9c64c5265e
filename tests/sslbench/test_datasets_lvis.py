"""LVIS v1 and v0.5: where images lie, and the fields that federated evaluation needs."""

import json
import shutil
from pathlib import Path
from typing import Any

import devkits
import pytest

from sslbench.datasets import DataError, DataRoots, content_id, images, read
from sslbench.scenes import SceneSettings, generate

V05 = "lvis_v0.5_val.json"


def v05_content(*names: str) -> dict[str, Any]:
    """LVIS v0.5 without coco_url: the names of the images 9 and 4."""
    content = devkits.lvis_content()
    for image, name in zip(content["images"], names, strict=True):
        del image["coco_url"]
        image["file_name"] = name
    return content


@pytest.mark.parametrize(
    "names",
    [
        ("COCO_val2014_000000000009.jpg", "COCO_train2014_000000000005.jpg"),
        ("val2017/000000000009.jpg", "000000000005.jpg"),
    ],
)
def test_v05_images_are_found_by_their_2017_name_in_either_folder(
    tmp_path: Path, names: tuple[str, str]
):
    coco = devkits.write_coco(tmp_path)
    devkits.write_lvis(tmp_path, v05_content(*names), V05)
    data = read("lvis_v05/val", DataRoots(tmp_path))
    assert [record.path for record in data.records] == [
        coco / "train2017/000000000005.jpg",
        coco / "val2017/000000000009.jpg",
    ]
    assert images("lvis_v05/val", DataRoots(tmp_path)).names == (
        "train2017/000000000005.jpg",
        "val2017/000000000009.jpg",
    )


def test_a_v05_image_in_neither_folder_is_named(tmp_path: Path):
    devkits.write_coco(tmp_path)
    devkits.write_lvis(tmp_path, v05_content("000000000009.jpg", "000000000077.jpg"), V05)
    with pytest.raises(DataError, match=r"lvis_v0.5_val.json names 1 images .* ids 4\."):
        read("lvis_v05/val", DataRoots(tmp_path))


def test_the_versions_are_two_data_sets_of_one_folder(tmp_path: Path):
    devkits.write_coco(tmp_path)
    devkits.write_lvis(tmp_path)
    with pytest.raises(DataError, match=r"'lvis_v05' not found"):
        read("lvis_v05/val", DataRoots(tmp_path))
    before = content_id("lvis_v1/val", DataRoots(tmp_path))
    devkits.write_lvis(tmp_path, v05_content("000000000009.jpg", "000000000005.jpg"), V05)
    assert content_id("lvis_v1/val", DataRoots(tmp_path)) == before
    assert content_id("lvis_v05/val", DataRoots(tmp_path)) != before


@pytest.mark.parametrize(
    ("key", "field", "value", "told"),
    [
        ("images", "neg_category_ids", None, "image 9 has the bad neg_category_ids None"),
        ("images", "neg_category_ids", ["3"], "image 9 has the bad neg_category_ids"),
        ("images", "not_exhaustive_category_ids", [5], r"not_exhaustive_category_ids: \[5\]"),
        ("categories", "frequency", "x", "category 18 has the frequency 'x'"),
        ("images", "coco_url", 7, "image.* id 9 has no 'coco_url' and no 'file_name'"),
    ],
)
def test_a_bad_federated_field_is_refused_with_file_and_value(
    tmp_path: Path, key: str, field: str, value: Any, told: str
):
    devkits.write_coco(tmp_path)
    content = devkits.lvis_content()
    content[key][0][field] = value
    path = devkits.write_lvis(tmp_path, content)
    with pytest.raises(DataError, match=told) as caught:
        read("lvis_v1/val", DataRoots(tmp_path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("images", "neg_category_ids"),
        ("images", "not_exhaustive_category_ids"),
        ("categories", "frequency"),
    ],
)
def test_a_missing_federated_field_is_named(tmp_path: Path, key: str, field: str):
    devkits.write_coco(tmp_path)
    content = devkits.lvis_content()
    del content[key][1][field]
    devkits.write_lvis(tmp_path, content)
    with pytest.raises(DataError, match=rf"{key} entry with id \d+ has no '{field}'"):
        read("lvis_v1/val", DataRoots(tmp_path))


def test_the_scenes_have_both_versions_with_the_same_annotations(tmp_path: Path):
    generate(tmp_path, SceneSettings(num_train=12, num_test=3, seed=1))
    roots = DataRoots(tmp_path)
    for split in ("train", "val"):
        new, old = read(f"lvis_v1/{split}", roots), read(f"lvis_v05/{split}", roots)
        by_id = {record.image_id: record for record in new.records}
        assert old.classes == new.classes
        assert all(by_id[record.image_id] == record for record in old.records)
    content = json.loads((tmp_path / "lvis" / V05).read_text())
    assert all(row["file_name"].startswith("COCO_val2014_") for row in content["images"])
    assert not any("coco_url" in row for row in content["images"])


def test_the_real_v05_subset_reads_with_its_images(real_data: Path, tmp_path: Path):
    shutil.copy(real_data / "lvis/lvis_v0.5_subset_with_images.json", tmp_path / V05)
    data = read("lvis_v05/val", DataRoots(real_data, {"lvis_v05": tmp_path}))
    assert len(data.records) == 5 and len(data.classes) == 1230
    assert all(record.path.is_file() for record in data.records)
    assert sum(len(record.objects) for record in data.records) == 46 and data.notes == ()


def test_the_real_v05_subset_without_urls_finds_the_same_images(real_data: Path, tmp_path: Path):
    content = json.loads((real_data / "lvis/lvis_v0.5_subset_with_images.json").read_text())
    roots = DataRoots(real_data, {"lvis_v05": tmp_path})
    (tmp_path / V05).write_text(json.dumps(content))
    by_url = [record.path for record in read("lvis_v05/val", roots).records]
    for image in content["images"]:
        del image["coco_url"]
        image["file_name"] = f"COCO_val2014_{image['id']:012d}.jpg"
    (tmp_path / V05).write_text(json.dumps(content))
    assert [record.path for record in read("lvis_v05/val", roots).records] == by_url
