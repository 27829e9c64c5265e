"""``transfer evaluate``: numbers from a predictions file alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sslbench.datasets import DataRoots, Dataset, read
from sslbench.results import read_results
from transfer.__main__ import app


def perfect_rows(dataset: Dataset) -> list[dict]:
    """Every object, found exactly."""
    rows = []
    for record in dataset.records:
        for item in record.objects:
            x0, y0, x1, y1 = item.box
            row = {"image_id": record.image_id, "category_id": dataset.category_ids[item.category]}
            row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "score": 0.9}
            if item.segmentation is not None:
                from transfer.engines.masks import encode, rasterise

                pixels = rasterise(item.segmentation, record.height, record.width, "")
                row["segmentation"] = encode(pixels)
            rows.append(row)
    return rows


def evaluate(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    said = result.output + (str(result.exception) if result.exception else "")
    return result.exit_code, said


@pytest.fixture
def lvis_task(tmp_path: Path) -> Path:
    path = tmp_path / "lvis.toml"
    path.write_text(
        'task = "lvis"\nkind = "mask_rcnn"\nlayout = "fpn"\nmetric = "lvis"\n'
        'recipe = "coco_mask_rcnn_R_50_FPN_tiny"\n'
        'train = ["lvis_v1/train"]\ntest = "lvis_v1/val"\n'
    )
    return path


@pytest.mark.parametrize("evaluator", ["default", "reference"])
def test_a_foreign_file_gets_all_numbers_and_results(
    evaluator: str, scenes: DataRoots, lvis_task: Path, tmp_path: Path
):
    dataset = read("lvis_v1/val", scenes)
    (tmp_path / "p.json").write_text(json.dumps(perfect_rows(dataset)))
    out = tmp_path / "made" / "results.json"
    out.parent.mkdir()
    status, said = evaluate(
        *(lvis_task, "--predictions", tmp_path / "p.json", "--data", scenes.root),
        *("--evaluator", evaluator, "--out", out, "--per-class"),
    )
    assert status == 0, said
    results = {row.metric: row for row in read_results(out)}
    assert len(results) == 26 and results["box_AP"].value == pytest.approx(100)
    assert results["mask_AP50"].value == pytest.approx(100)
    assert "lvis.box_AR300  100.00" in said
    notes = results["box_AP"].footnotes
    assert notes[0].startswith("scored from a given file (p.json, sha256 ")
    assert notes[0].endswith(") on lvis_v1/val by the rules of lvis")
    assert notes[1].startswith("not the official data: lvis_v1/val has ")
    assert len(notes) == (3 if evaluator == "reference" else 2)
    kept = json.loads((out.parent / "results.classes.json").read_text())
    assert kept["evaluator"].split()[0] == {"default": "hotcoco", "reference": "lvis"}[evaluator]
    assert [row["name"] for row in kept["classes"]] == list(dataset.classes)
    assert f"{dataset.classes[0]}  box_AP " in said


def test_voc_predictions_get_both_definitions(scenes: DataRoots, tmp_path: Path):
    rows = perfect_rows(read("voc2007/test", scenes))
    (tmp_path / "p.json").write_text(json.dumps(rows))
    status, said = evaluate(
        "voc_det_twin", "--predictions", tmp_path / "p.json", "--data", scenes.root
    )
    assert status == 0, said
    assert "voc_det_twin.AP50  100.00" in said and "voc_det_twin.AP50_area  100.00" in said


def test_another_test_split_can_be_named(scenes: DataRoots, tmp_path: Path):
    rows = perfect_rows(read("coco2017/train", scenes))
    (tmp_path / "p.json").write_text(json.dumps(rows))
    given = ("--predictions", tmp_path / "p.json", "--data", scenes.root)
    status, said = evaluate("coco_fpn_twin", "test=coco2017/train", *given)
    assert status == 0 and "coco_fpn_twin.mask_AP  100.00" in said, said
    assert "note: departs from coco_fpn in data: tested on coco2017/train" in said
    assert "departs from coco_fpn in content of the data: coco2017/train has " in said
    status, said = evaluate("coco_fpn_twin", *given)
    assert status == 1 and "not in coco2017/val" in said


@pytest.mark.parametrize(("only", "dropped"), [("box", "segmentation"), ("mask", "bbox")])
def test_a_file_of_boxes_or_masks_alone_is_scored(
    only: str, dropped: str, scenes: DataRoots, tmp_path: Path
):
    rows = perfect_rows(read("coco2017/val", scenes))
    bare = [{key: value for key, value in row.items() if key != dropped} for row in rows]
    (tmp_path / "p.json").write_text(json.dumps(bare))
    given = ("coco_fpn_twin", "--predictions", tmp_path / "p.json", "--data", scenes.root)
    status, said = evaluate(*given, "--only", only)
    assert status == 0 and f"coco_fpn_twin.{only}_AP  100.00" in said, said
    assert ("mask_AP" in said) == (only == "mask")
    status, said = evaluate(*given)
    assert status == 1 and f"has no {dropped}" in said and "--only box, --only mask" in said


def test_masks_alone_of_a_task_of_boxes_are_refused(scenes: DataRoots, tmp_path: Path):
    given = ("--predictions", tmp_path / "p.json", "--data", scenes.root)
    status, said = evaluate("voc_det_twin", *given, "--only", "mask")
    assert status == 1 and "--only mask: task voc_det_twin (faster_rcnn) has box" in said


def test_annotations_that_hotcoco_cannot_read_are_named(scenes: DataRoots, tmp_path: Path):
    shutil.copytree(scenes.root / "coco", tmp_path / "coco")
    path = tmp_path / "coco/annotations/instances_val2017.json"
    path.write_text("\ufeff" + path.read_text())
    (tmp_path / "p.json").write_text("[]")
    given = ("coco_fpn_twin", "--predictions", tmp_path / "p.json", "--data", tmp_path)
    status, said = evaluate(*given)
    assert status == 1 and "hotcoco cannot read" in said and "--evaluator reference" in said, said


def test_a_file_that_does_not_fit_is_one_paragraph(scenes: DataRoots, tmp_path: Path):
    (tmp_path / "p.json").write_text("{}")
    status, said = evaluate(
        "coco_fpn_twin", "--predictions", tmp_path / "p.json", "--data", scenes.root
    )
    assert status == 1 and "p.json must hold a list" in said and "Traceback" not in said


def test_evaluation_needs_no_torch(scenes: DataRoots, tmp_path: Path):
    rows = perfect_rows(read("coco2017/val", scenes))
    (tmp_path / "p.json").write_text(json.dumps(rows))
    code = (
        "import sys\n"
        "from transfer.__main__ import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    arguments = ["evaluate", "coco_fpn_twin", "--predictions", tmp_path / "p.json"]
    command = [sys.executable, "-c", code, *arguments, "--data", scenes.root]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "coco_fpn_twin.box_AP  100.00" in done.stdout
