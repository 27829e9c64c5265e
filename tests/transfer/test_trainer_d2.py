"""Our loop against Detectron2's own DefaultTrainer: the same weights, batches and draws."""

import copy
from itertools import islice
from pathlib import Path

import pytest
from detectors import build_engine, twin_task

from benchmarks.default_trainer import DefaultLoop
from sslbench.datasets import DataRoots
from sslbench.log import RunLog
from transfer.detection import read_data
from transfer.loader import TrainingBatches
from transfer.task import TaskConfig
from transfer.trainer import Trainer

pytestmark = pytest.mark.d2


def losses_of_both(
    task: TaskConfig, data: DataRoots, folder: Path, num_steps: int
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Loss terms per step: ours, and those of DefaultTrainer."""
    engine = build_engine(task, data, folder)
    twin = copy.copy(engine)
    twin.model = copy.deepcopy(engine.model)
    train, _ = read_data(task, data)
    size = task.values()["SOLVER.IMS_PER_BATCH"]
    served = TrainingBatches(train.records, engine.mapper, size, task.seed, grouped=True)
    batches = list(islice(served(0, num_steps), num_steps))
    with RunLog(folder) as log:
        trainer = Trainer(engine, served, task, folder, log)
        engine.model.train()
        ours = [trainer.step(copy.deepcopy(batch)) for batch in batches]
    loop = DefaultLoop(task, twin, batches, len(train.classes), folder)
    with loop.training():
        theirs = [loop.step() for _ in batches]
    return ours, theirs


def largest_difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """Over all terms, which must have the same names."""
    assert set(ours) == set(theirs)
    return max(abs(ours[name] - theirs[name]) for name in theirs)


@pytest.mark.parametrize("layout", ["c4", "fpn"])
def test_ten_steps_of_our_loop_are_those_of_the_default_trainer(
    layout: str, scenes: DataRoots, tmp_path: Path
):
    # warm-up, the full rate and the rate after a drop are all within the ten steps
    steps = ["set.SOLVER.MAX_ITER=12", "set.SOLVER.STEPS=[7]"]
    task = twin_task(layout, "detectron2", steps)
    ours, theirs = losses_of_both(task, scenes, tmp_path, num_steps=11)
    assert largest_difference(ours[0], theirs[0]) < 1e-5
    assert largest_difference(ours[10], theirs[10]) < 1e-3
    assert largest_difference(ours[0], ours[10]) > 1e-2  # there is something to agree on


FULL_WIDTH = (
    "set.MODEL.RESNETS.STEM_OUT_CHANNELS=64",
    "set.MODEL.RESNETS.WIDTH_PER_GROUP=64",
    "set.MODEL.RESNETS.RES2_OUT_CHANNELS=256",
    "set.MODEL.FPN.OUT_CHANNELS=256",
    "set.MODEL.ROI_BOX_HEAD.FC_DIM=1024",
    "set.MODEL.ROI_MASK_HEAD.CONV_DIM=256",
)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["c4", "fpn"])
def test_a_full_width_step_is_that_of_the_default_trainer(
    layout: str, scenes: DataRoots, tmp_path: Path
):
    ours, theirs = losses_of_both(
        twin_task(layout, "detectron2", FULL_WIDTH), scenes, tmp_path, num_steps=2
    )
    assert largest_difference(ours[0], theirs[0]) < 1e-5
    assert largest_difference(ours[1], theirs[1]) < 1e-3  # after one update of all weights
