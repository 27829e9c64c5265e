"""Annotations that cannot be are refused by name; odd ones of real data are counted in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import devkits
import pytest

from sslbench.datasets import DataError, DataRoots, Dataset, read

NAN = float("nan")
Change = Callable[[dict[str, Any]], None]


def put(key: str, index: int, field: str, value: Any) -> Change:
    """Set a field of one row of the instances file."""

    def change(content: dict[str, Any]) -> None:
        content[key][index][field] = value

    return change


def annotated(field: str, value: Any) -> Change:
    return put("annotations", 0, field, value)


def segmented(value: Any) -> Change:
    return annotated("segmentation", value)


def read_changed(root: Path, *changes: Change) -> Dataset:
    content = devkits.coco_content()
    for change in changes:
        change(content)
    devkits.write_coco(root, content)
    return read("coco2017/val", DataRoots(root))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("annotations", 1, "id", 70), "annotation id 70 is used twice; give each"),
        (annotated("id", "70"), "annotation id '70' is no whole number"),
        (annotated("id", None), "annotation id None is no whole number"),
        (annotated("image_id", 77), "annotation 70 has the unknown image_id 77; .* file's images"),
        (annotated("image_id", [9]), r"annotation 70 has the unknown image_id \[9\]"),
        (annotated("image_id", "9"), "annotation 70 has the unknown image_id '9'"),
        (annotated("category_id", 0), "annotation 70 has the unknown category_id 0; .* categories"),
        (annotated("bbox", [8, 1, 2, 2]), r"bbox \[8, 1, 2, 2\]: it lies wholly outside 0+9.jpg"),
        (annotated("bbox", [-3, 1, 2, 2]), "wholly outside 0+9.jpg of 8 x 6 pixels; mend"),
        (annotated("bbox", [1, 6, 2, 2]), "wholly outside"),
        (annotated("bbox", [1, -2, 2, 2]), "wholly outside"),
        (annotated("bbox", "1234"), "bad bbox '1234'"),
        (annotated("bbox", None), "bad bbox None"),
        (annotated("bbox", [0, 0, float("inf"), 1]), "bad bbox"),
        (annotated("bbox", [0, 0, 10**400, 1]), "bad bbox"),
        (annotated("area", NAN), "annotation 70 has the bad area nan"),
        (annotated("area", -1), "bad area -1"),
        (annotated("area", "12"), "bad area '12'"),
        (annotated("iscrowd", 2), "bad iscrowd 2"),
        (annotated("iscrowd", "no"), "bad iscrowd 'no'"),
        (segmented([[1, 2, 4, 2, 4, 6, 1]]), "annotation 70, in 0+9.jpg, has the polygon"),
        (segmented([[1, 2, 4, 2, 4, NAN]]), "annotation 70, in 0+9.jpg, has the polygon"),
        (segmented([[10**400, 2, 4, 2, 4, 1]]), "has the polygon"),
        (segmented([[1, 2, 4, 2, 4, "x"]]), "has the polygon"),
        (segmented([1, 2, 4, 2, 4, 6]), "has the polygon 1, which is no list"),
        (segmented("outline"), "is 'outline' instead of polygons"),
        (
            segmented({"size": [8, 6], "counts": [48]}),
            r"of size \[8, 6\] but the image of \[6, 8\]",
        ),
        (segmented({"size": [6, 8], "counts": [47]}), "do not add up to its 6x8 pixels"),
        (segmented({"size": [6, 8], "counts": "zz"}), "do not add up to its 6x8 pixels"),
        (put("images", 0, "height", 0), "image 9 has the height 0"),
        (put("images", 0, "width", NAN), "image 9 has the width nan"),
        (put("images", 0, "width", "8"), "image 9 has the width '8'"),
        (put("images", 0, "id", "9"), "images has the id '9', not a whole number"),
        (put("images", 0, "file_name", 9), "image 9 has the file_name 9, not a text"),
        (put("categories", 0, "id", 3), "categories has the id 3 twice"),
        (put("categories", 0, "name", "car"), "category 18 has the name 'car', which is"),
        (put("categories", 0, "name", None), "category 18 has the name None"),
        (lambda content: content["images"].clear(), "lists no image"),
        (lambda content: content["categories"].clear(), "lists no category"),
    ],
)
def test_an_impossible_annotation_is_refused_with_file_id_and_value(
    tmp_path: Path, change: Change, told: str
):
    with pytest.raises(DataError, match=told) as caught:
        read_changed(tmp_path, change)
    assert str(tmp_path / "coco/annotations/instances_val2017.json") in str(caught.value)


def test_an_empty_file_is_called_empty(tmp_path: Path):
    path = devkits.write_coco(tmp_path) / "annotations/instances_val2017.json"
    path.write_text("\n")
    with pytest.raises(DataError, match=r"instances_val2017.json is not valid JSON: it is empty"):
        read("coco2017/val", DataRoots(tmp_path))


def test_sound_annotations_need_no_word(tmp_path: Path):
    assert read_changed(tmp_path).notes == ()


def test_boxes_of_zero_area_are_kept_and_counted(tmp_path: Path):
    data = read_changed(tmp_path, annotated("bbox", [2, 3, 4, 0]))
    assert data.records[1].objects[0].box == (2, 3, 6, 3)
    assert data.notes == ("instances_val2017.json has 1 boxes of zero area (no training)",)


@pytest.mark.parametrize(("bbox", "counted"), [([-0.5, 0, 9, 6.5], 0), ([1, 2, 3, 5.5], 1)])
def test_a_box_over_the_edge_stays_and_counts_from_one_pixel_on(
    tmp_path: Path, bbox: list[float], counted: int
):
    data = read_changed(tmp_path, annotated("bbox", bbox))
    left, top, width, height = bbox
    assert data.records[1].objects[0].box == (left, top, left + width, top + height)
    assert len(data.notes) == counted
    assert all("1 boxes over the image's edge" in note for note in data.notes)


def test_polygons_of_two_points_are_left_out_and_counted(tmp_path: Path):
    whole = [1, 2, 4, 2, 4, 6]
    data = read_changed(tmp_path, segmented([[1, 2, 4, 2], whole]))
    assert data.records[1].objects[0].segmentation == [whole]
    assert data.notes == (
        "instances_val2017.json has 1 polygons of fewer than 3 points (left out)",
    )


def test_an_object_of_short_polygons_alone_has_no_outline_and_is_counted(tmp_path: Path):
    data = read_changed(tmp_path, segmented([[1, 2, 4, 2]]))
    assert data.records[1].objects[0].segmentation == []
    assert "1 objects without any other polygon" in data.notes[0]


def test_ids_with_gaps_are_no_fault(tmp_path: Path):
    data = read_changed(
        tmp_path, put("categories", 0, "id", 90), put("annotations", 0, "category_id", 90)
    )
    assert data.category_ids == (3, 90) and data.records[1].objects[0].category == 1


def read_voc(root: Path, objects: str, size: str | None = None) -> Dataset:
    devkits.write_xml(devkits.write_voc(root), "000007", objects, size)
    return read("voc2007/test", DataRoots(root))


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ((9, 1, 12, 3), r"object 1 \(cat\) lies wholly outside its image of 8 x 6 pixels: xmin=9"),
        ((1, 7, 2, 9), "wholly outside"),
        (("nan", 1, 2, 2), "is 'nan', not a number"),
        ((1, 1, "inf", 2), "is 'inf', not a number"),
    ],
)
def test_an_impossible_voc_box_is_refused_with_file_and_value(
    tmp_path: Path, box: tuple[Any, ...], told: str
):
    with pytest.raises(DataError, match=told) as caught:
        read_voc(tmp_path, devkits.OBJECT.format(name="cat", difficult=0, box=box))
    assert "Annotations/000007.xml" in str(caught.value)


def test_a_voc_flag_that_is_neither_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"object 1 \(cat\) has <difficult> 'maybe'"):
        read_voc(tmp_path, devkits.OBJECT.format(name="cat", difficult="maybe", box=(1, 1, 2, 2)))


def test_a_voc_size_that_is_no_number_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="is 'nan', not a number"):
        read_voc(tmp_path, "", "<size><width>nan</width><height>6</height></size>")


def test_voc_boxes_over_the_edge_are_counted_over_the_split(tmp_path: Path):
    data = read_voc(tmp_path, devkits.OBJECT.format(name="cat", difficult=0, box=(3, 2, 11, 5)))
    assert data.notes == ("voc2007/test has 1 boxes over the image's edge (cut there)",)
