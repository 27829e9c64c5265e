"""The demo learns: its loss falls, and its numbers beat chance and the random control.

``SSLBENCH_DEMO_RUNS`` names a run folder to judge; without it the demo runs afresh.
"""

import json
import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest

from sslbench.log import read_metrics
from tests.e2e.running import Suite, make_scenes
from transfer.task import has_detectron2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

OURS, CONTROL = "CYBORGS (ours)", "Random init."


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    scenes = make_scenes(tmp_path_factory.mktemp("data") / "scenes")
    runs = os.environ.get("SSLBENCH_DEMO_RUNS") or tmp_path_factory.mktemp("runs")
    suite = Suite("demo", Path(runs), scenes)
    done = suite.launch(timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    return suite


def value(suite: Suite, row: str, task: str, metric: str) -> float:
    found = {(r["row"], r["task"], r["metric"]): r["value"] for r in suite.results()}
    return found[row, task, metric]


def stage_folders(suite: Suite) -> list[Path]:
    """Folders of the suite's own stages; the run folder may hold others."""
    listed = json.loads(suite.launch("status", "--json").stdout)
    return [suite.runs / stage["name"] for stage in listed]


def stage_folder(suite: Suite, prefix: str) -> Path:
    (folder,) = (
        f for f in stage_folders(suite) if str(f.relative_to(suite.runs)).startswith(prefix)
    )
    return folder


def test_the_contrastive_loss_falls_within_a_mask_generation(demo):
    rows = read_metrics(stage_folder(demo, "pretrain/cyborgs") / "metrics.jsonl")
    # another generation has other masks in common, which alone moves the loss: compare within one
    first = [row for row in rows if 3 <= row["epoch"] <= 24]
    edge = len(first) // 5
    start, end = (np.mean([r["contrast"] for r in part]) for part in (first[:edge], first[-edge:]))
    assert end < start - 0.05
    gap = [row["positive_cosine"] - row["negative_cosine"] for row in rows if row["epoch"] >= 3]
    assert np.mean(gap[-20:]) > np.mean(gap[:20]) + 0.05


def test_masks_are_bootstrapped_twice_and_beat_the_grid(demo):
    masks = stage_folder(demo, "pretrain/cyborgs") / "masks"
    assert len(list(masks.glob("epoch_*"))) >= 2
    results = stage_folder(demo, "mask_quality") / "results.json"
    found = {row["metric"]: row["value"] for row in json.loads(results.read_text())}
    grid = found.pop("ari_grid5x5")
    generations = [v for name, v in found.items() if name.startswith("ari_kmeans")]
    assert len(generations) >= 2
    assert min(generations) > grid + 3


def test_svm_is_well_above_chance_and_the_random_control(demo):
    ours = value(demo, OURS, "voc07_svm", "mAP")
    assert ours > 25  # chance is 14
    assert ours > value(demo, CONTROL, "voc07_svm", "mAP") + 5


def test_boxes_are_well_above_chance_and_the_random_control(demo):
    ours = value(demo, OURS, "voc_det_tiny", "AP50")
    assert ours > 18  # chance is 0
    assert ours > value(demo, CONTROL, "voc_det_tiny", "AP50")


def test_instance_masks_are_found(demo):
    assert value(demo, OURS, "coco_fpn_tiny", "box_AP50") > 6
    assert value(demo, OURS, "coco_fpn_tiny", "mask_AP50") > 5


def test_detectron2_serves_wherever_it_is_installed(demo):
    expected = "detectron2" if has_detectron2() else "torchvision"
    engines = {
        r["engine"] for r in demo.results() if r["task"] in ("voc_det_tiny", "coco_fpn_tiny")
    }
    assert engines == {expected}


def test_a_second_demo_takes_seconds(demo):
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert demo.launch().returncode == 0
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 15  # CPU seconds


def test_the_report_page_needs_nothing_but_itself(demo):
    page = (demo.runs / "reports" / "demo" / "index.html").read_text()
    assert OURS in page
    assert "not comparable with published numbers" in page
    assert page.count("data:image/") >= 4  # detections, instance masks, mask curve and gallery
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)|url\(([^)]*)\)|@import""", page)
    assert addresses
    outside = [a or b for a, b in addresses if not (a or b).strip("'\"").startswith(("data:", "#"))]
    assert outside == []
