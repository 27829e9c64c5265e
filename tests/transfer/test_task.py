"""Task files, recipes, and what a resolved task pins."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from sslbench.config import ConfigError
from sslbench.stage import fingerprint
from transfer.detection import Detection
from transfer.engines.recipe import (
    DEFAULTS,
    ELSEWHERE,
    FIXED,
    Recipe,
    flatten,
    read_recipe,
)
from transfer.task import TASKS_DIR, TaskConfig, load_task

ALL_TASKS = sorted(path.stem for path in TASKS_DIR.glob("*.toml"))


@pytest.mark.parametrize("name", ALL_TASKS)
def test_every_task_file_resolves_and_its_recipe_is_built_by_the_portable_engine(name: str):
    task = load_task(name, ["engine=torchvision"]).resolved()
    task.values().require_portable()
    assert task.task == name


def test_the_voc_recipe_is_the_published_protocol():
    recipe = load_task("voc0712_det").values()
    assert recipe["SOLVER.MAX_ITER"] == 24000
    assert recipe["SOLVER.STEPS"] == (18000, 22000)
    assert recipe["SOLVER.BASE_LR"] == 0.02 and recipe["SOLVER.IMS_PER_BATCH"] == 16
    assert recipe["SOLVER.WARMUP_ITERS"] == 100 and recipe["SOLVER.WEIGHT_DECAY"] == 1e-4
    assert recipe["INPUT.MIN_SIZE_TRAIN"] == tuple(range(480, 801, 32))
    assert recipe["MODEL.RESNETS.NORM"] == "SyncBN"
    assert recipe["TEST.PRECISE_BN.NUM_ITER"] == 200
    assert recipe.given["MODEL.RESNETS.STRIDE_IN_1X1"] is False
    assert recipe.given["MODEL.BACKBONE.FREEZE_AT"] == 0


def test_the_coco_recipe_is_the_published_protocol():
    recipe = load_task("coco_fpn").values()
    assert recipe["SOLVER.MAX_ITER"] == 90000 and recipe["SOLVER.STEPS"] == (60000, 80000)
    assert recipe["INPUT.MIN_SIZE_TRAIN"] == (640, 672, 704, 736, 768, 800)
    assert recipe["MODEL.FPN.NORM"] == "SyncBN"
    assert recipe["MODEL.ROI_BOX_HEAD.NORM"] == "" and recipe["MODEL.ROI_BOX_HEAD.NUM_FC"] == 2
    assert recipe["MODEL.ROI_MASK_HEAD.NUM_CONV"] == 4


def test_an_edited_recipe_is_another_stage_and_a_moved_one_is_not(tmp_path: Path):
    text = (TASKS_DIR.parent / "d2" / "voc_R_50_C4_twin.yaml").read_text()
    text = text.replace("_BASE_: ", f"_BASE_: {TASKS_DIR.parent / 'd2'}/")

    def mark(recipe: Path | str, *overrides: str) -> str:
        task = load_task("voc_det_twin", [f"recipe={recipe}", "engine=torchvision", *overrides])
        return fingerprint(Detection(task).resolved(), {}, {})

    here, there = tmp_path / "mine.yaml", tmp_path / "moved.yaml"
    here.write_text(text)
    before = mark(here)
    assert mark("voc_R_50_C4_twin") == before
    here.rename(there)
    assert mark(there) == before
    there.write_text(text.replace("MAX_ITER: 8", "MAX_ITER: 9"))
    assert mark(there) != before
    assert mark(there) == mark("voc_R_50_C4_twin", "set.SOLVER.MAX_ITER=9")


def test_the_engine_and_every_recipe_key_enter_the_fingerprint():
    def mark(*overrides: str) -> str:
        return fingerprint(Detection(load_task("voc_det_twin", overrides)).resolved(), {}, {})

    torchvision = mark("engine=torchvision")
    assert torchvision != mark("engine=detectron2")
    assert torchvision != mark("engine=torchvision", "set.SOLVER.BASE_LR=0.01")
    assert torchvision == mark("engine=torchvision", "checkpoint_every=1", "num_pictures=1")


@pytest.mark.parametrize("files", [("setup.py",), ("__init__.py",)])
def test_auto_takes_detectron2_exactly_where_it_is_a_package(
    files: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "detectron2").mkdir()
    for name in files:
        (tmp_path / "detectron2" / name).touch()
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    importlib.invalidate_caches()
    expected = "detectron2" if "__init__.py" in files else "torchvision"
    assert load_task("voc_det_twin").resolved().engine == expected


def test_auto_takes_torchvision_where_nothing_is_called_detectron2(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert load_task("voc_det_twin").resolved().engine == "torchvision"


def test_planning_imports_no_torch():
    code = (
        "import sys; from transfer.detection import Detection; from transfer.task import load_task;"
        "Detection(load_task('voc0712_det')).resolved().needs(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["layout=fpn"], "contradicts MODEL.BACKBONE.NAME"),
        (["set.MODEL.MASK_ON=true"], "contradicts MODEL.MASK_ON"),
        (["recipe=voc_R_50_C5"], "recipe 'voc_R_50_C5'.*known: .*voc_R_50_C4_tiny"),
        (["set.MODEL.RESNETS.STEM_OUT_CHANNELS=16"], "imply different widths"),
    ],
)
def test_contradictions_surface_while_planning(overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        task = load_task("voc_det_twin", ["engine=torchvision", *overrides]).resolved()
        _ = task.values().width


WHOLE_NUMBERS = [key for key, default in DEFAULTS.items() if type(default) is int]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, -1) for key in WHOLE_NUMBERS),
        *((key, 2.5) for key in WHOLE_NUMBERS),
        ("SOLVER.MAX_ITER", 0),
        ("SOLVER.IMS_PER_BATCH", "true"),
        ("SOLVER.IMS_PER_BATCH", "two"),
        ("SOLVER.BASE_LR", 0.0),
        ("SOLVER.STEPS", "[6.5]"),
        ("INPUT.MIN_SIZE_TRAIN", "[-1]"),
        ("INPUT.MIN_SIZE_TRAIN", "[]"),
        ("INPUT.MIN_SIZE_TRAIN", 64),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 0]]"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[]]"),
        ("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 0),
        ("TEST.PRECISE_BN.NUM_ITER", 0),
        ("MODEL.BACKBONE.FREEZE_AT", -1),
    ],
)
def test_an_impossible_number_is_refused_with_key_value_and_remedy(key: str, value: object):
    with pytest.raises(ConfigError) as caught:
        load_task("voc_det_twin", [f"set.{key}={value}", "engine=torchvision"]).resolved()
    assert f"{key} must be " in str(caught.value)
    assert f"got {value}" in str(caught.value).replace("True", "true")
    assert f"set.{key}=" in str(caught.value)


def test_zero_passes_where_it_means_none():
    for key, value in (("SOLVER.WARMUP_ITERS", 0), ("SOLVER.STEPS", "[]")):
        load_task("voc_det_twin", [f"set.{key}={value}", "engine=torchvision"]).resolved()


def test_masks_need_a_metric_with_masks():
    with pytest.raises(ConfigError, match="needs metric 'coco' or 'lvis'"):
        load_task("coco_fpn_twin", ["metric=voc07"])


def test_the_portable_engine_refuses_what_it_would_ignore():
    recipe = Recipe(
        {"MODEL": {"ROI_HEADS": {"NMS_TRESH_TEST": 0.3}}, "SOLVER": {"AMP": {"ENABLED": True}}}
    )
    with pytest.raises(ConfigError) as caught:
        recipe.require_portable()
    assert "MODEL.ROI_HEADS.NMS_TRESH_TEST" in str(caught.value)
    assert "SOLVER.AMP.ENABLED" in str(caught.value)
    assert "MODEL.RESNETS.STRIDE_IN_1X1 is True" in str(caught.value)  # Detectron2's default


@pytest.mark.parametrize("name", ["voc_det_twin", "coco_fpn_twin"])
def test_the_portable_engine_reads_the_maps_of_its_layout_alone(name: str):
    other = load_task(name, ['set.MODEL.ROI_HEADS.IN_FEATURES=["p3"]', "engine=torchvision"])
    with pytest.raises(
        ConfigError, match=r"IN_FEATURES is \('p3',\); the torchvision engine builds"
    ):
        other.resolved().values().require_portable()


def test_tuples_and_floats_in_yaml_strings_are_read_as_detectron2_reads_them(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("SOLVER:\n  STEPS: (3, 4)\n  BASE_LR: 1e-3\n")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml\nSOLVER:\n  MAX_ITER: 5\n")
    values = dict(flatten(read_recipe(tmp_path / "top.yaml")))
    assert values == {"SOLVER.STEPS": (3, 4), "SOLVER.BASE_LR": 0.001, "SOLVER.MAX_ITER": 5}


def test_unknown_keys_are_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'recipe'"):
        load_task("voc_det_twin", ["recipes=x"])


@pytest.mark.d2
def test_the_defaults_are_detectron2s_own():
    from detectron2.config import get_cfg

    theirs = dict(flatten(get_cfg()))
    assert {key: theirs[key] for key in DEFAULTS} == DEFAULTS
    assert {key: theirs[key] for key in FIXED} == {k: default for k, (default, _) in FIXED.items()}
    assert set(ELSEWHERE) <= set(theirs)


def test_a_task_config_survives_the_run_record():
    task = load_task("coco_fpn_twin", ["engine=torchvision"]).resolved()
    again = TaskConfig.model_validate_json(task.model_dump_json())
    assert again.resolved() == task and again.values()["SOLVER.STEPS"] == (6,)
