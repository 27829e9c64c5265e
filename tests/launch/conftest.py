"""A small suite on fake stages: a pretrained row, a random row, two detection tasks and an SVM."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch import graph
from launch.suite import Suite, load_suite
from sslbench.datasets import DataRoots
from tests.launch import fakes

SUITE = """
name = "fake"
title = "A fake suite"
banner = "fake numbers <not> & comparable"
[[row]]
method = "Ours & <co>"
pretrain = "pretrain.toml"
[[row]]
method = "Random init."
random = { depth = 18 }
[[task]]
id = "voc_det"
config = "voc_det.toml"
metrics = ["AP", "AP50"]
[[task]]
id = "coco_fpn"
config = "coco_fpn.toml"
metrics = ["box_AP"]
[[task]]
id = "voc07_svm"
stage = "svm"
config = "svm.toml"
metrics = ["mAP"]
[[task]]
id = "mask_quality"
stage = "mask_quality"
metrics = ["ari_kmeans_*", "ari_grid"]
[task.set]
task = "mask_quality"
metrics = ["ari_kmeans_0001", "ari_kmeans_0002", "ari_grid"]
"""
CONFIGS = {
    "pretrain.toml": "epochs = 3",
    "voc_det.toml": 'task = "voc_det"\nlayout = "c4"\nmetrics = ["AP", "AP50"]',
    "coco_fpn.toml": 'task = "coco_fpn"\nlayout = "fpn"\nmetrics = ["box_AP"]',
    "svm.toml": 'task = "voc07_svm"\nmetrics = ["mAP"]',
}

Planner = Callable[..., list[graph.PlannedStage]]


@pytest.fixture(autouse=True)
def fake_refs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "REFS", fakes.FAKE_REFS)


@pytest.fixture
def suite_path(tmp_path: Path) -> Path:
    folder = tmp_path / "configs"
    folder.mkdir()
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    (folder / "suite.toml").write_text(SUITE)
    return folder / "suite.toml"


@pytest.fixture
def suite(suite_path: Path) -> Suite:
    return load_suite(str(suite_path))


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    return DataRoots(tmp_path / "data", {})
