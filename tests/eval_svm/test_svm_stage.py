"""The SVM stage and its command, end to end on a devkit of a few pictures."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from devkit import CLASSES, write_devkit
from typer import Typer
from typer.testing import CliRunner

from eval_svm.__main__ import main
from eval_svm.config import SVMConfig
from eval_svm.stage import VOC07SVM, SVMError
from sslbench.config import CONFIGS_DIR, load
from sslbench.datasets import DataError, DataRoots
from sslbench.resnet import ResNet
from sslbench.results import read_results
from sslbench.stage import run_standalone

SMALL = {"resize": 40, "crop": 32, "batch_size": 4}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = ResNet(18, 0.25).train()
    network(torch.randn(8, 3, 64, 64))
    torch.save(network.state_dict(), tmp_path / "trunk.pth")
    return tmp_path / "trunk.pth"


def run(checkpoint: Path, root: Path, out: Path, **changes) -> Path:
    stage = VOC07SVM(SVMConfig(**(SMALL | changes)))
    run_standalone(stage, inputs={"checkpoint": checkpoint}, data=DataRoots(root), out=out)
    return out


def test_colours_are_told_apart(checkpoint: Path, tmp_path: Path):
    out = run(checkpoint, write_devkit(tmp_path / "data"), tmp_path / "out")
    rows = {row.metric: row for row in read_results(out / "results.json")}
    assert set(rows) == {"mAP", "mAP_envelope"}
    assert rows["mAP"].task == "voc07_svm"
    assert rows["mAP"].num_images == 16
    assert rows["mAP"].value > 90
    assert rows["mAP"].footnotes == ("departs from voc07_svm in resize 40, crop 32",)
    classes = json.loads((out / "costs.json").read_text())
    assert [item["name"] for item in classes] == list(CLASSES)
    mean = sum(item["ap"] for item in classes) / 3
    assert rows["mAP"].value == pytest.approx(100 * mean)
    assert list(classes[0]["cross_validation"]) == ["0.01", "0.1", "1.0", "10.0"]


def test_a_run_cut_anywhere_continues_to_the_same_bytes(checkpoint: Path, tmp_path: Path):
    root = write_devkit(tmp_path / "data")
    whole = run(checkpoint, root, tmp_path / "whole")
    expected = {name: (whole / name).read_bytes() for name in ("results.json", "costs.json")}

    def without_the_test_features(out: Path):
        shutil.rmtree(out / "features" / "test")
        (out / "costs.json").unlink()

    def after_one_class(out: Path):
        first = json.loads((out / "costs.json").read_text())[:1]
        (out / "costs.json").write_text(json.dumps(first))

    for cut in (without_the_test_features, after_one_class, lambda out: None):
        out = tmp_path / "cut"
        shutil.copytree(whole, out)
        for name in ("done.json", "results.json"):
            (out / name).unlink()
        cut(out)
        run(checkpoint, root, out)
        assert {name: (out / name).read_bytes() for name in expected} == expected
        shutil.rmtree(out)


def test_a_class_that_no_training_image_shows_is_skipped_and_said(checkpoint, tmp_path: Path):
    root = write_devkit(tmp_path / "data")
    path = root / "VOCdevkit/VOC2007/ImageSets/Main/red_trainval.txt"
    path.write_text(path.read_text().replace(" 1\n", "-1\n"))
    out = run(checkpoint, root, tmp_path / "out")
    row = read_results(out / "results.json")[0]
    assert "1 of 3 classes skipped: red" in row.footnotes
    classes = json.loads((out / "costs.json").read_text())
    counted = [item["ap"] for item in classes if item["ap"] is not None]
    assert len(counted) == 2
    assert row.value == pytest.approx(50 * sum(counted))


def test_no_class_at_all_is_an_error(checkpoint: Path, tmp_path: Path):
    root = write_devkit(tmp_path / "data", num_train=3)
    with pytest.raises(SVMError, match="no class of voc2007/trainval can be evaluated"):
        run(checkpoint, root, tmp_path / "out")


def test_splits_with_other_classes_are_an_error(checkpoint: Path, tmp_path: Path):
    root = write_devkit(tmp_path / "data")
    (root / "VOCdevkit/VOC2007/ImageSets/Main/red_test.txt").unlink()
    with pytest.raises(DataError, match=r"only in one: \['red'\]"):
        run(checkpoint, root, tmp_path / "out")


def invoke(*arguments: object):
    app = Typer(pretty_exceptions_enable=False)
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands_last_line_is_the_map(checkpoint: Path, tmp_path: Path):
    root, out = write_devkit(tmp_path / "data"), tmp_path / "out"
    overrides = [f"{key}={value}" for key, value in SMALL.items()]
    result = invoke(checkpoint, *overrides, "--voc", root, "--out", out)
    assert result.exit_code == 0, result.output
    value = read_results(out / "results.json")[0].value
    assert result.output.splitlines()[-1] == f"mAP {value:.2f}"


def test_the_splits_can_be_named(checkpoint: Path, tmp_path: Path):
    root, out = write_devkit(tmp_path / "data"), tmp_path / "out"
    folder = root / "VOCdevkit" / "VOC2007"
    arguments = ["--voc", folder, "--train", "test", "--test", "trainval", "--out", out]
    result = invoke(checkpoint, "resize=40", "crop=32", "costs=[1.0]", *arguments)
    assert result.exit_code == 0, result.output
    assert read_results(out / "results.json")[0].num_images == 24


def test_errors_are_one_paragraph(checkpoint: Path, tmp_path: Path):
    result = invoke(checkpoint, "--voc", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "nowhere" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", ["voc07", "voc07_tiny"])
def test_the_shipped_configs_load(name: str):
    cfg = load(SVMConfig, CONFIGS_DIR / "svm" / f"{name}.toml")
    assert (cfg.departures_from_protocol() == ()) == (name == "voc07")
