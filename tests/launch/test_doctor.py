"""``launch doctor``: what is there, whole and official, and how what is missing is expected."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from launch.doctor import data_of, examine, machine, wanted_specs
from launch.doctor.checks import check
from launch.doctor.layout import tree
from launch.site import SiteConfig
from sslbench.config import CONFIGS_DIR, ConfigError
from sslbench.datasets import DataRoots, content_id, official
from sslbench.datasets.official import OfficialSplit, list_digest
from sslbench.files import file_sha256
from tests.sslbench import devkits


@pytest.fixture(autouse=True)
def fake_refs() -> None:
    """The shipped suites name the real stages."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    devkits.write_coco(tmp_path)
    devkits.write_voc(tmp_path)
    devkits.write_lvis(tmp_path)
    return tmp_path


def told(names: list[str], root: Path, sample: int = 32) -> tuple[bool, str]:
    page = io.StringIO()
    console = Console(file=page, width=500)
    return examine(names, DataRoots(root, source="--data"), sample, console), page.getvalue()


def test_a_valid_subset_is_no_fault_and_is_called_what_it_is(root: Path):
    fine, said = told(["coco2017/val", "voc2007/test", "lvis_v1/val"], root)
    assert fine and "missing" not in said and "broken" not in said
    assert "not the official data: 2 of 5000 images, 2 of 36781 objects, 2 of 80 classes" in said
    assert content_id("coco2017/val", DataRoots(root)) in said
    assert f"{root} (from --data)" in said


def test_a_complete_data_set_is_called_official(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(official.OFFICIAL, "coco2017/val", OfficialSplit(2, 2, 2))
    digest = list_digest(["000007", "000002"])
    monkeypatch.setitem(official.OFFICIAL, "voc2007/test", OfficialSplit(2, 2, 2, digest))
    for spec in ("coco2017/val", "voc2007/test"):
        found = check(spec, DataRoots(root), 32)
        assert (found.state, found.notes, found.num_decoded) == ("official", (), 2)


def test_other_images_of_the_same_number_are_not_official(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(official.OFFICIAL, "voc2007/test", OfficialSplit(2, 2, 2, "0" * 16))
    found = check("voc2007/test", DataRoots(root), 32)
    assert found.state == "not official" and found.is_usable
    assert found.notes == ("not the official data: other images than its released list",)


def test_annotations_are_compared_with_the_released_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    path = root / "coco/annotations/instances_val2017.json"
    released = OfficialSplit(2, 2, 2, annotation_sha256=file_sha256(path))
    monkeypatch.setitem(official.OFFICIAL, "coco2017/val", released)
    assert check("coco2017/val", DataRoots(root), 2).state == "official"
    path.write_text(path.read_text() + " ")
    found = check("coco2017/val", DataRoots(root), 2)
    assert found.state == "not official" and found.is_usable
    assert found.notes[0].startswith("not the official data: other annotations than released (sha")


def test_what_is_missing_is_drawn_with_the_public_names(root: Path):
    (root / "coco/annotations/instances_val2017.json").rename(root / "away.json")
    fine, said = told(["coco2017/val"], root)
    assert not fine and "instances_val2017.json is not there" in said
    lines = [line.strip() for line in said.splitlines()]
    start = lines.index(f"{root / 'coco'}/")
    assert lines[start + 1 : start + 8] == [
        "├─ annotations/",
        "│  ├─ instances_train2017.json  [missing]",
        "│  └─ instances_val2017.json  [missing]",
        "├─ train2017/  118,287 images: 000000000009.jpg ...  [there]",
        "└─ val2017/  5,000 images: 000000000139.jpg ...  [there]",
        "from train2017.zip",
        "from val2017.zip",
    ]


def test_lvis_without_the_images_of_coco_draws_both(root: Path):
    (root / "coco").rename(root / "elsewhere")
    fine, said = told(["lvis_v1/val"], root)
    assert not fine
    assert "lvis_v1 is expected as" in said and "coco2017 is expected as" in said


def test_without_a_name_missing_sets_are_no_fault_but_broken_ones_are(root: Path):
    fine, said = told([], root)
    assert fine and "voc2012/trainval  missing" in said
    (root / "lvis/lvis_v1_val.json").write_text('{"images": [')
    fine, said = told([], root)
    assert not fine and "1 of 9 are missing or broken: lvis_v1/val" in said
    assert "lvis_v1_val.json is not valid JSON" in said


def test_a_damaged_image_is_named_with_its_path(root: Path):
    path = root / "coco/val2017/000000000009.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    fine, said = told(["coco2017/val"], root)
    assert not fine and f"image {path} " in said and "cannot be decoded" in said


def test_an_image_of_another_size_than_annotated_is_named(root: Path):
    path = root / "VOCdevkit/VOC2007/JPEGImages/000007.jpg"
    path.write_bytes(devkits.jpeg((6, 8)))
    fine, said = told(["voc2007/test"], root)
    assert not fine and f"{path} is 6 x 8 pixels, its annotations say 8 x 6" in said


def test_only_a_sample_is_decoded(root: Path):
    for number in range(20, 60):
        (root / f"coco/val2017/{number:012d}.jpg").write_bytes(devkits.jpeg())
    assert check("coco2017/val:images", DataRoots(root), 5).num_decoded == 5
    assert check("coco2017/val:images", DataRoots(root), 99).num_decoded == 42
    assert check(str(root / "coco/val2017"), DataRoots(root), 1).num_decoded == 1


def test_image_labels_and_folders_can_be_looked_over(root: Path):
    labels = check("voc2007/test:labels", DataRoots(root), 9)
    assert labels.counts == "2 images, 2 classes" and labels.is_usable
    folder = check(str(root / "coco/val2017"), DataRoots(root), 9)
    assert folder.state == "there" and folder.counts == "2 images"
    assert check(str(root / "gone"), DataRoots(root), 9).state == "missing"


def test_a_suite_is_what_its_stages_read():
    specs = wanted_specs(["table1"])
    assert {"coco2017/train", "coco2017/val", "voc2012/trainval", "voc2007/test"} <= set(specs)
    assert "coco2017/train:images" in specs  # of the pretraining
    assert "voc2007/test" in wanted_specs(["checkpoint"])  # without naming a checkpoint


def test_a_suite_on_data_of_its_own_is_looked_for_there():
    roots = data_of(["demo"], SiteConfig(), [])
    assert roots.root == CONFIGS_DIR.parent / "data/scenes" and roots.source == "the suite"


def test_an_unknown_name_is_answered_with_suites_and_data_sets():
    with pytest.raises(ConfigError, match=r"no suite 'vco2007'.*data sets are voc2007, voc2012"):
        wanted_specs(["vco2007"])


def test_every_data_set_has_a_layout(tmp_path: Path):
    for dataset in ("voc2007", "voc2012", "coco2017", "lvis_v1", "lvis_v05"):
        lines = tree(dataset, DataRoots(tmp_path))
        assert lines[0].startswith(str(tmp_path)) and lines[-1].startswith("from ")
        assert all("[missing]" in line or "─" in line or "from" in line for line in lines[1:])


def test_an_own_root_is_where_a_missing_set_is_drawn(tmp_path: Path):
    roots = DataRoots(tmp_path, {"voc2012": tmp_path / "mine"})
    assert tree("voc2012", roots)[0] == f"{tmp_path / 'mine'}/"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (("clone.py",), "torchvision; Detectron2 is not installed"),
        (("__init__.py",), "detectron2, but .* lacks its compiled part _C"),
        (("__init__.py", "_C.so"), "^detectron2; engine=torchvision is another"),
    ],
)
def test_the_engine_is_told_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], told: str
):
    for package in ("detectron2", "torchvision"):
        (tmp_path / package).mkdir()
    (tmp_path / "torchvision/__init__.py").touch()
    for name in files:
        (tmp_path / "detectron2" / name).write_text("raise SystemExit('imported')")
    for name in ("detectron2", "torchvision"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    (line,) = [line for line in machine.machine_lines() if line.startswith("engine")]
    assert re.search(told, line.removeprefix("engine").strip())


@pytest.mark.slow
def test_the_command_exits_with_one_and_imports_no_torch(root: Path):
    code = (
        "import sys\nfrom launch.__main__ import main\n"
        "try:\n    main()\nfinally:\n    print('torch:', 'torch' in sys.modules, file=sys.stderr)"
    )
    words = ["doctor", "coco2017/val", "voc2012", "--data", str(root)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=CONFIGS_DIR.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "torch: False" in done.stderr
    assert "1 of 2 are missing or broken: voc2012/trainval" in done.stdout
    assert "VOCtrainval_11-May-2012.tar" in done.stdout
