"""A detector that cannot learn eight photographs by heart has a mistake somewhere."""

import json
from pathlib import Path

import pytest
from detectors import run_detection, write_random_weights

from sslbench.datasets import DataRoots
from sslbench.results import read_results
from transfer.task import load_task

pytestmark = pytest.mark.slow

# the first eight images with one to four objects, none a crowd, each at least 2 % of the picture
IMAGES = (42, 73, 136, 387, 459, 502, 623, 636)
BY_HEART = (
    "test=coco2017/train",
    # all eight in every batch: batch norm then sees in training what it sees in the test
    "set.SOLVER.IMS_PER_BATCH=8",
    "set.DATALOADER.ASPECT_RATIO_GROUPING=false",
    "set.TEST.PRECISE_BN.NUM_ITER=2",
    "set.SOLVER.MAX_ITER=400",
    "set.SOLVER.STEPS=[330,380]",
    "set.SOLVER.WARMUP_ITERS=50",
    "set.SOLVER.BASE_LR=0.06",
    "set.INPUT.MIN_SIZE_TRAIN=[128]",
    "set.INPUT.MIN_SIZE_TEST=128",
    "set.INPUT.RANDOM_FLIP=none",
)
ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.d2)]


@pytest.fixture
def eight_photographs(real_data: Path, tmp_path: Path) -> DataRoots:
    """A COCO layout of the eight images alone."""
    source = real_data / "coco"
    truth = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    truth["images"] = [row for row in truth["images"] if row["id"] in IMAGES]
    truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] in IMAGES]
    root = tmp_path / "data" / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(truth))
    (root / "train2017").mkdir()
    for row in truth["images"]:
        pixels = (source / "train2017" / row["file_name"]).read_bytes()
        (root / "train2017" / row["file_name"]).write_bytes(pixels)
    return DataRoots(tmp_path / "data")


@pytest.mark.parametrize("engine", ENGINES)
def test_eight_photographs_are_learned_by_heart(
    engine: str, eight_photographs: DataRoots, tmp_path: Path
):
    task = load_task("coco_fpn_tiny", [f"engine={engine}", *BY_HEART]).resolved()
    weights = write_random_weights(tmp_path / "w.pkl", "fpn", width=task.values().width)
    out = run_detection(task, eight_photographs, weights, tmp_path / "out")
    values = {result.metric: result.value for result in read_results(out / "results.json")}
    assert min(values["box_AP"], values["mask_AP"]) > 50, json.dumps(values)
