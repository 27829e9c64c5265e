"""The linear scaling rule, and what results say of their settings."""

import pytest

from sslbench.config import ConfigError
from sslbench.stage import fingerprint
from transfer.detection import Detection
from transfer.task import TaskConfig, load_task


def voc(*overrides: str) -> TaskConfig:
    return load_task("voc0712_det", ["engine=torchvision", *overrides]).resolved()


HALF = ("set.SOLVER.IMS_PER_BATCH=8", "scale_lr_with_batch=true")


def test_half_the_batch_takes_half_the_rate_and_twice_the_iterations():
    recipe = voc(*HALF).values()
    assert recipe["SOLVER.BASE_LR"] == pytest.approx(0.01)
    assert (recipe["SOLVER.MAX_ITER"], recipe["SOLVER.STEPS"]) == (48000, (36000, 44000))
    assert recipe["SOLVER.WARMUP_ITERS"] == 200
    assert recipe["SOLVER.WARMUP_FACTOR"] == voc().values()["SOLVER.WARMUP_FACTOR"]


@pytest.mark.d2
def test_the_scaled_schedule_is_detectron2s():
    from detectron2.engine import DefaultTrainer

    from transfer.engines.detectron2 import build_config

    task = voc("engine=detectron2")
    cfg = build_config(task, 20, "cpu").clone()
    cfg.defrost()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    theirs = DefaultTrainer.auto_scale_workers(cfg, 4).SOLVER
    ours = voc(*HALF).values()
    assert ours["SOLVER.IMS_PER_BATCH"] == theirs.IMS_PER_BATCH
    for key in ("BASE_LR", "MAX_ITER", "WARMUP_ITERS", "STEPS"):
        assert ours[f"SOLVER.{key}"] == getattr(theirs, key), key


def test_old_and_new_values_are_noted():
    (note,) = voc(*HALF).notes_on_settings()
    assert note == (
        "scaled linearly with the batch: IMS_PER_BATCH 16 -> 8, BASE_LR 0.02 -> 0.01, "
        "MAX_ITER 24000 -> 48000, STEPS 18000/22000 -> 36000/44000, WARMUP_ITERS 100 -> 200"
    )


def test_another_batch_alone_changes_no_rate():
    task = voc("set.SOLVER.IMS_PER_BATCH=8")
    assert task.values()["SOLVER.BASE_LR"] == 0.02 and not task.notes_on_settings()


def test_resolving_twice_scales_once():
    task = voc(*HALF)
    assert task.resolved() == task and task.resolved().values()["SOLVER.BASE_LR"] == 0.01


def test_scaling_and_setting_the_rate_contradict_each_other():
    with pytest.raises(ConfigError, match=r"scale_lr_with_batch would change SOLVER.BASE_LR"):
        voc(*HALF, "set.SOLVER.BASE_LR=0.3")


def test_scaling_to_the_same_batch_is_the_same_run():
    asked, plain = voc("scale_lr_with_batch=true"), voc()
    assert asked.recipe_values == plain.recipe_values and not asked.scaled_from


def test_accumulation_and_precision_are_noted_and_fingerprinted():
    task = voc("accumulate=8", "precision=bf16")
    first, second = task.notes_on_settings()
    assert "8 parts of a batch of 16" in first and "sees 2 images at a time" in first
    assert second == "trained in bf16, predicted in fp32"
    marks = [fingerprint(Detection(t), {}, {}) for t in (voc(), voc("evaluate_every=500"), task)]
    assert marks[0] == marks[1] != marks[2]


def test_a_batch_that_cannot_be_cut_is_refused_while_planning():
    with pytest.raises(ConfigError, match=r"IMS_PER_BATCH 16 cannot be cut into accumulate=3"):
        voc("accumulate=3")
