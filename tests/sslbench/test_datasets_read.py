"""Readers of VOC, COCO and LVIS annotations: what they return, and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import devkits
import numpy as np
import pytest

from sslbench.datasets import DataError, DataRoots, image_labels, images, read
from sslbench.datasets.coco import load_json


def test_voc_boxes_become_zero_based_with_exclusive_ends(tmp_path: Path):
    devkits.write_voc(tmp_path)
    data = read("voc2007/test", DataRoots(tmp_path))
    empty, full = data.records
    assert (empty.image_id, empty.objects) == ("000002", ())
    assert (full.image_id, full.height, full.width) == ("000007", 6, 8)
    cat, dog = full.objects
    assert cat.box == (0, 1, 3, 4) and cat.area == 9 and not cat.difficult
    assert dog.box == (1, 0, 8, 6) and dog.difficult and not dog.crowd


def test_voc_classes_come_from_the_lists(tmp_path: Path):
    folder = devkits.write_voc(tmp_path)
    data = read("voc2007/test", DataRoots(tmp_path))
    assert data.classes == ("cat", "dog") and data.category_ids == (1, 2)
    for path in (folder / "ImageSets/Main").glob("*_test.txt"):
        path.unlink()
    assert len(read("voc2007/test", DataRoots(tmp_path)).classes) == 20


def test_voc_labels_are_those_of_the_lists(tmp_path: Path):
    devkits.write_voc(tmp_path)
    labels = image_labels("voc2007/test", DataRoots(tmp_path))
    assert [path.stem for path in labels.paths] == ["000002", "000007"]
    assert labels.matrix.dtype == np.int8
    assert labels.matrix.tolist() == [[-1, -1], [1, 0]]


def test_voc_labels_without_lists_follow_from_the_boxes(tmp_path: Path):
    folder = devkits.write_voc(tmp_path)
    for path in (folder / "ImageSets/Main").glob("*_test.txt"):
        path.unlink()
    labels = image_labels("voc2007/test", DataRoots(tmp_path))
    by_class = dict(zip(labels.classes, labels.matrix.T.tolist(), strict=True))
    assert by_class["cat"] == [-1, 1] and by_class["dog"] == [-1, 0] and by_class["bus"] == [-1, -1]


def test_the_class_train_does_not_confuse_the_lists(tmp_path: Path):
    lists = devkits.write_voc(tmp_path) / "ImageSets/Main"
    (lists / "train_test.txt").write_text("000007 -1\n000002  1\n")
    labels = image_labels("voc2007/test", DataRoots(tmp_path))
    assert labels.classes == ("cat", "dog", "train")
    with pytest.raises(DataError, match="available: test; did you mean 'voc2007/test'"):
        read("voc2007/tset", DataRoots(tmp_path))


def test_voc_list_names_an_image_that_is_not_there(tmp_path: Path):
    folder = devkits.write_voc(tmp_path)
    (folder / "JPEGImages/000007.jpg").unlink()
    with pytest.raises(DataError, match=r"test.txt names 1 images .* 000007"):
        read("voc2007/test", DataRoots(tmp_path))


@pytest.mark.parametrize(
    ("objects", "size", "message"),
    [
        ("<object><difficult>0</difficult></object>", None, "<object> has no <name>"),
        ("<object><name>cat</name></object>", None, "<object> has no <bndbox><xmin>"),
        (devkits.OBJECT.format(name="cat", difficult=0, box="abcd"), None, "is 'a', not a number"),
        (devkits.OBJECT.format(name="cat", difficult=0, box=(5, 1, 4, 2)), None, "empty box"),
        (devkits.OBJECT.format(name="cow", difficult=0, box=(1, 1, 2, 2)), None, "is 'cow'; the"),
        ("", "<size/>", "<annotation> has no <size><width>"),
        ("", "<size><width>0</width><height>6</height></size>", "size is 0x6"),
        ("<obj", None, "is not valid XML"),
    ],
)
def test_broken_voc_xml_is_named(tmp_path: Path, objects: str, size: str | None, message: str):
    path = devkits.write_xml(devkits.write_voc(tmp_path), "000007", objects, size)
    with pytest.raises(DataError, match=message) as caught:
        read("voc2007/test", DataRoots(tmp_path))
    assert str(path) in str(caught.value)


def test_an_image_without_xml_is_named(tmp_path: Path):
    (devkits.write_voc(tmp_path) / "Annotations/000002.xml").unlink()
    with pytest.raises(DataError, match=r"000002.jpg has no annotation"):
        read("voc2007/test", DataRoots(tmp_path))


def test_xml_that_is_a_folder_or_of_an_unknown_encoding_is_named(tmp_path: Path):
    path = devkits.write_voc(tmp_path) / "Annotations/000002.xml"
    path.write_text('<?xml version="1.0" encoding="klingon"?><annotation/>')
    with pytest.raises(DataError, match=r"000002.xml is not valid XML \(unknown encoding"):
        read("voc2007/test", DataRoots(tmp_path))
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"000002.xml cannot be read: Is a directory"):
        read("voc2007/test", DataRoots(tmp_path))


def test_a_list_of_images_that_is_no_text_is_named(tmp_path: Path):
    path = devkits.write_voc(tmp_path) / "ImageSets/Main/test.txt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"test.txt is not text in UTF-8"):
        read("voc2007/test", DataRoots(tmp_path))


@pytest.mark.parametrize("text", ["[" * 100_000, f"[{'9' * 5000}]"])
def test_json_that_python_refuses_to_parse_is_named(tmp_path: Path, text: str):
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"instances.json is not valid JSON"):
        load_json(path)


def test_an_image_listed_twice_is_named(tmp_path: Path):
    lists = devkits.write_voc(tmp_path) / "ImageSets/Main"
    (lists / "test.txt").write_text("000007\n000002\n000007\n")
    with pytest.raises(DataError, match=r"test.txt lists 000007 more than once"):
        read("voc2007/test", DataRoots(tmp_path))


@pytest.mark.parametrize("line", ["000007 2", "000007", "000007 1 1"])
def test_a_bad_line_of_a_class_list_is_named(tmp_path: Path, line: str):
    lists = devkits.write_voc(tmp_path) / "ImageSets/Main"
    (lists / "cat_test.txt").write_text(f"000002 -1\n{line}\n")
    with pytest.raises(DataError, match=r"cat_test.txt line 2"):
        image_labels("voc2007/test", DataRoots(tmp_path))


def test_a_class_list_that_misses_an_image_is_named(tmp_path: Path):
    lists = devkits.write_voc(tmp_path) / "ImageSets/Main"
    (lists / "cat_test.txt").write_text("000002 -1\n")
    with pytest.raises(DataError, match=r"cat_test.txt has no label for 1 images: 000007"):
        image_labels("voc2007/test", DataRoots(tmp_path))


def test_coco_categories_become_contiguous_in_order_of_their_ids(tmp_path: Path):
    devkits.write_coco(tmp_path)
    data = read("coco2017/val", DataRoots(tmp_path))
    assert data.classes == ("car", "dog") and data.category_ids == (3, 18)
    assert [record.image_id for record in data.records] == [4, 9]
    dog, crowd = data.records[1].objects
    assert dog.category == 1 and dog.box == (1, 2, 4, 6) and dog.annotation_id == 70
    assert dog.segmentation == [[1, 2, 4, 2, 4, 6, 1, 6]] and not dog.crowd
    assert crowd.category == 0 and crowd.crowd and crowd.segmentation["counts"] == [0, 6, 42]


def test_lvis_val_images_may_lie_in_train2017(tmp_path: Path):
    coco = devkits.write_coco(tmp_path)
    devkits.write_lvis(tmp_path)
    data = read("lvis_v1/val", DataRoots(tmp_path))
    assert [record.path for record in data.records] == [
        coco / "train2017/000000000005.jpg",
        coco / "val2017/000000000009.jpg",
    ]
    names = images("lvis_v1/val", DataRoots(tmp_path)).names
    assert names == ("train2017/000000000005.jpg", "val2017/000000000009.jpg")


def _set(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


def _drop(*keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_set("images", 0, "file_name", to="gone.jpg"), "names 1 images that are not in .* ids 9"),
        (_set("annotations", 0, "image_id", to=5), "annotation 70 has the unknown image_id 5"),
        (_set("annotations", 0, "category_id", to=1), "annotation 70 has the unknown category_id"),
        (_set("annotations", 0, "bbox", to=[0, 0, -1, 2]), "annotation 70 has the bad bbox"),
        (_set("annotations", 0, "bbox", to=[0, 0, 1]), "annotation 70 has the bad bbox"),
        (
            _set("annotations", 0, "bbox", to=[0, 0, float("nan"), 1]),
            "annotation 70 has the bad bbox",
        ),
        (_set("images", 1, to=7), "images entry number 1 is 7, not an object"),
        (_set("images", 0, "id", to=4), "images has the id 4 twice"),
        (_drop("images", 1, "height"), "images entry with id 4 has no 'height'"),
        (_drop("annotations", 1, "bbox"), "annotations entry with id 71 has no 'bbox'"),
        (_drop("categories"), "has no list 'categories'"),
    ],
)
def test_broken_coco_json_is_named(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str
):
    content = devkits.coco_content()
    damage(content)
    devkits.write_coco(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        read("coco2017/val", DataRoots(tmp_path))
    assert "instances_val2017.json" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 40, -1])
def test_json_cut_short_is_named(tmp_path: Path, keep: int):
    path = devkits.write_coco(tmp_path) / "annotations/instances_val2017.json"
    path.write_text(json.dumps(devkits.coco_content())[:keep])
    with pytest.raises(DataError, match=r"instances_val2017.json is not valid JSON"):
        read("coco2017/val", DataRoots(tmp_path))


def test_a_missing_annotation_file_and_an_unknown_split_are_named(tmp_path: Path):
    devkits.write_coco(tmp_path)
    with pytest.raises(DataError, match=r"instances_train2017.json is not there"):
        read("coco2017/train", DataRoots(tmp_path))
    with pytest.raises(DataError, match=r"no split 'test' in .* available: train, val"):
        read("coco2017/test", DataRoots(tmp_path))


def test_image_labels_are_refused_where_there_are_none(tmp_path: Path):
    with pytest.raises(DataError, match="no image-level labels"):
        image_labels("coco2017/val", DataRoots(tmp_path))
