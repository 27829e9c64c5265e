"""Finding data sets below a root, and answering what is not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from sslbench.datasets import (
    DataError,
    DataRoots,
    content_id,
    images,
    is_data_spec,
    locate,
    only,
    read,
)


def test_usual_layouts_are_found_below_the_root(tmp_path: Path):
    for folder in ("VOCdevkit/VOC2007/JPEGImages", "coco/annotations", "lvis"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lvis/lvis_v1_val.json").touch()
    roots = DataRoots(tmp_path)
    assert locate("voc2007", roots) == tmp_path / "VOCdevkit/VOC2007"
    assert locate("coco2017", roots) == tmp_path / "coco"
    assert locate("lvis_v1", roots) == tmp_path / "lvis"


def test_the_root_may_be_the_data_set_itself_or_an_override(tmp_path: Path):
    (tmp_path / "JPEGImages").mkdir()
    assert locate("voc2007", DataRoots(tmp_path)) == tmp_path
    elsewhere = DataRoots(Path("/nowhere"), {"voc2012": tmp_path})
    assert locate("voc2012", elsewhere) == tmp_path


def test_one_folder_of_pictures_does_not_pass_for_two_data_sets(tmp_path: Path):
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(DataError, match="'voc2012' not found"):
        locate("voc2012", DataRoots(tmp_path))


def test_a_missing_root_names_what_was_looked_for_where_and_the_way_out(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        read("voc2007/trainval", DataRoots(tmp_path / "gone"))
    message = str(caught.value)
    assert f"below {tmp_path / 'gone'}, which does not exist" in message
    assert f"{tmp_path / 'gone' / 'VOCdevkit/VOC2007'}  (does not exist)" in message
    assert "DATA=" in message and "python -m sslbench.scenes" in message


def test_an_empty_root_is_called_empty(tmp_path: Path):
    with pytest.raises(DataError, match="is an empty folder"):
        content_id("coco2017/train", DataRoots(tmp_path))


def test_a_folder_without_the_expected_content_says_what_it_lacks(tmp_path: Path):
    (tmp_path / "VOCdevkit/VOC2007").mkdir(parents=True)
    with pytest.raises(DataError, match=r"VOC2007  \(has no JPEGImages\)"):
        locate("voc2007", DataRoots(tmp_path))


def test_an_unknown_data_set_is_answered_with_the_nearest(tmp_path: Path):
    with pytest.raises(DataError, match="did you mean 'coco2017'"):
        read("coco2107/train", DataRoots(tmp_path))
    with pytest.raises(DataError, match="unknown data set 'voc07'"):
        DataRoots(tmp_path, {"voc07": tmp_path})


def test_a_spec_needs_a_split(tmp_path: Path):
    with pytest.raises(DataError, match="must look like voc2007/train"):
        read("voc2007", DataRoots(tmp_path))


def test_specs_are_told_from_paths():
    assert is_data_spec("voc2007/test") and is_data_spec("lvis_v1/val")
    assert is_data_spec("coco2017/train:images") and is_data_spec("voc2007/test:labels")
    for path in ("./voc2007/test", "voc2007", "photos/train", "/data/voc2007/test", "a.tar"):
        assert not is_data_spec(path)


def test_a_spec_is_narrowed_to_what_is_read_of_it():
    assert only("images", "coco2017/train") == "coco2017/train:images"
    assert only("labels", "voc2007/test:labels") == "voc2007/test:labels"
    assert only("images", "/my/photos:images") == "/my/photos:images"


def test_an_unknown_part_of_a_split_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="ends in 'boxes'; it may end in all, images, labels"):
        content_id("voc2007/test:boxes", DataRoots(tmp_path))


def test_a_path_that_is_not_there_mentions_data_specs(tmp_path: Path):
    with pytest.raises(DataError, match="no such folder, list file or tar"):
        images(tmp_path / "gone", DataRoots(tmp_path))


def test_roots_survive_json(tmp_path: Path):
    roots = DataRoots(tmp_path, {"coco2017": tmp_path / "elsewhere"})
    assert DataRoots.from_json(roots.to_json()) == roots


def test_reading_and_drawing_need_no_torch():
    code = (
        "import sys, sslbench.datasets, sslbench.scenes.__main__; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


def test_typed_roots_are_one_folder_for_all_and_one_for_each_set(tmp_path: Path):
    roots = DataRoots.given([str(tmp_path), f"coco2017={tmp_path}/fast"])
    assert roots.of("voc2007") == tmp_path and roots.of("coco2017") == tmp_path / "fast"
    assert roots.source_of("voc2007") == "--data"


def test_a_typed_root_of_one_set_leaves_the_others_where_they_were(tmp_path: Path):
    before = DataRoots(tmp_path, {"voc2007": tmp_path / "voc"}, "a site file")
    roots = DataRoots.given([f"coco2017={tmp_path}/fast"], otherwise=before)
    assert roots.of("lvis_v1") == tmp_path and roots.source_of("lvis_v1") == "a site file"
    assert roots.of("voc2007") == tmp_path / "voc" and roots.of("coco2017") == tmp_path / "fast"


def test_detectron2s_variable_names_the_root_and_the_message_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "VOC2007/JPEGImages").mkdir(parents=True)
    assert locate("voc2007", DataRoots.given()) == tmp_path / "VOC2007"
    with pytest.raises(DataError, match=r"below .* \(from DETECTRON2_DATASETS\), which holds"):
        locate("coco2017", DataRoots.given())


def test_a_typed_root_wins_over_detectron2s_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    assert DataRoots.given([str(tmp_path)]).root == tmp_path
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    assert DataRoots.given().root == Path("data").resolve()


@pytest.mark.parametrize(
    ("items", "told"),
    [
        (["/a", "/b"], "two folders for all data sets, /a and /b"),
        (["voc2007=/a", "voc2007=/b"], "gives voc2007 twice: /a and /b"),
        (["voc07=/a"], "unknown data set 'voc07'; did you mean 'voc2007'"),
        (["voc2007="], "give the folder of voc2007 after the equals sign"),
    ],
)
def test_typed_roots_that_contradict_are_refused(items: list[str], told: str):
    with pytest.raises(DataError, match=told):
        DataRoots.given(items)


def test_a_folder_with_an_equals_sign_in_its_name_is_a_folder(tmp_path: Path):
    odd = tmp_path / "run=3"
    assert DataRoots.given([str(odd)]).root == odd
