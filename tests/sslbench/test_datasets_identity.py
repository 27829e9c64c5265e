"""The content id: changes with images and annotation bytes, not with place or time."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import devkits
import pytest

from sslbench.datasets import DataError, DataRoots, content_id


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with all three layouts."""
    top = tmp_path / "data"
    top.mkdir()
    devkits.write_voc(top)
    devkits.write_coco(top)
    devkits.write_lvis(top)
    return top


SPECS = ("voc2007/test", "coco2017/val", "lvis_v1/val")


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text and len(old) == len(new)
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("spec", SPECS)
def test_moving_and_touching_the_data_changes_nothing(spec: str, root: Path):
    before = content_id(spec, DataRoots(root))
    copy = shutil.copytree(root, root.parent / "copy")
    for path in copy.rglob("*"):
        os.utime(path, (0, 0))
    assert content_id(spec, DataRoots(copy)) == before
    assert len(before) == 16


def _grow_voc(root: Path) -> None:
    with (root / "VOCdevkit/VOC2007/JPEGImages/000007.jpg").open("ab") as file:
        file.write(b"\0")


def _drop_voc(root: Path) -> None:
    lists = root / "VOCdevkit/VOC2007/ImageSets/Main"
    (lists / "test.txt").write_text("000007\n")


@pytest.mark.parametrize(
    ("spec", "change"),
    [
        ("voc2007/test", _grow_voc),
        ("voc2007/test", _drop_voc),
        (
            "voc2007/test",
            lambda r: _replace(
                r / "VOCdevkit/VOC2007/Annotations/000007.xml", "<xmin>1", "<xmin>2"
            ),
        ),
        (
            "voc2007/test",
            lambda r: _replace(r / "VOCdevkit/VOC2007/ImageSets/Main/cat_test.txt", " 1", " 0"),
        ),
        ("coco2017/val", lambda r: (r / "coco/val2017/000000000004.jpg").unlink()),
        ("coco2017/val", lambda r: (r / "coco/val2017/000000000003.jpg").write_bytes(b"x")),
        (
            "coco2017/val",
            lambda r: _replace(r / "coco/annotations/instances_val2017.json", "dog", "dug"),
        ),
        ("lvis_v1/val", lambda r: _replace(r / "lvis/lvis_v1_val.json", "dog", "dug")),
        ("lvis_v1/val", lambda r: (r / "coco/train2017/000000000005.jpg").write_bytes(b"x")),
    ],
)
def test_any_change_of_the_content_changes_the_id(
    spec: str, change: Callable[[Path], None], root: Path
):
    before = content_id(spec, DataRoots(root))
    change(root)
    assert content_id(spec, DataRoots(root)) != before


def test_images_of_other_splits_do_not_matter(root: Path):
    before = (
        content_id("voc2007/test", DataRoots(root)),
        content_id("coco2017/val", DataRoots(root)),
    )
    (root / "VOCdevkit/VOC2007/JPEGImages/000099.jpg").write_bytes(b"x")
    (root / "coco/train2017/000000000006.jpg").write_bytes(b"x")
    after = content_id("voc2007/test", DataRoots(root)), content_id("coco2017/val", DataRoots(root))
    assert before == after


def test_a_path_counts_by_its_images(root: Path):
    roots = DataRoots(Path("/nowhere"))
    first = content_id(str(root / "coco/val2017"), roots)
    assert first == content_id(str(shutil.copytree(root / "coco/val2017", root / "other")), roots)
    assert first != content_id(str(root / "coco/train2017"), roots)


def test_missing_annotations_are_named_with_the_way_out(root: Path):
    with pytest.raises(
        DataError, match=r"instances_train2017.json is not there.* give their folder"
    ):
        content_id("coco2017/train", DataRoots(root))
    (root / "VOCdevkit/VOC2007/Annotations/000002.xml").unlink()
    with pytest.raises(DataError, match=r"000002.xml is not there"):
        content_id("voc2007/test", DataRoots(root))


def test_images_alone_need_no_annotations_and_do_not_count_them(root: Path):
    specs = ("coco2017/val:images", "voc2007/test:images")
    before = [content_id(spec, DataRoots(root)) for spec in specs]
    shutil.rmtree(root / "coco/annotations")
    shutil.rmtree(root / "VOCdevkit/VOC2007/Annotations")
    for path in root.glob("VOCdevkit/VOC2007/ImageSets/Main/*_test.txt"):
        path.unlink()
    assert [content_id(spec, DataRoots(root)) for spec in specs] == before
    assert before[0] == content_id(str(root / "coco/val2017"), DataRoots(root))
    _grow_voc(root)
    assert content_id(specs[1], DataRoots(root)) != before[1]


def test_labels_count_the_lists_but_no_boxes(root: Path):
    before = content_id("voc2007/test:labels", DataRoots(root))
    shutil.rmtree(root / "VOCdevkit/VOC2007/Annotations")
    assert content_id("voc2007/test:labels", DataRoots(root)) == before
    _replace(root / "VOCdevkit/VOC2007/ImageSets/Main/cat_test.txt", " 1", " 0")
    assert content_id("voc2007/test:labels", DataRoots(root)) != before


def test_labels_without_lists_count_the_boxes_they_come_from(root: Path):
    for path in root.glob("VOCdevkit/VOC2007/ImageSets/Main/*_test.txt"):
        path.unlink()
    before = content_id("voc2007/test:labels", DataRoots(root))
    _replace(root / "VOCdevkit/VOC2007/Annotations/000007.xml", "<xmin>1", "<xmin>2")
    assert content_id("voc2007/test:labels", DataRoots(root)) != before


def test_only_voc_has_image_level_labels(root: Path):
    with pytest.raises(DataError, match="no image-level labels"):
        content_id("coco2017/val:labels", DataRoots(root))


def test_lists_of_another_split_count_where_they_name_the_classes(root: Path):
    lists = root / "VOCdevkit/VOC2007/ImageSets/Main"
    for path in lists.glob("*_test.txt"):
        path.rename(lists / path.name.replace("_test", "_train"))
    before = content_id("voc2007/test", DataRoots(root))
    (lists / "ant_train.txt").write_text("")
    assert content_id("voc2007/test", DataRoots(root)) != before
