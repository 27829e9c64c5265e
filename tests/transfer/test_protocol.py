"""The protocol check: every departure is one line a subject, and strict tasks refuse them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from detectors import run_detection, twin_task, write_random_weights

from sslbench.config import ConfigError
from sslbench.datasets import DataRoots, Dataset
from sslbench.results import Result, read_results
from sslbench.stage import fingerprint
from transfer.detection import Detection, read_data
from transfer.engines.recipe import read_recipe, recipe_path
from transfer.protocol import (
    ProtocolError,
    check,
    departures,
    departures_of_test,
    require_protocol,
)
from transfer.task import TASKS_DIR, load_task

OFFICIAL = Dataset("voc2007", "test", ("x",), (1,), (), None)
UNOFFICIAL = replace(OFFICIAL, unofficial=("voc2007/test has 9 of 4952 images",))
OFFICIAL_TASKS = [
    path.stem for path in TASKS_DIR.glob("*.toml") if load_task(path.stem).protocol == ""
]


@pytest.mark.parametrize("name", OFFICIAL_TASKS)
def test_a_protocol_does_not_depart_from_itself_with_the_reference_engine(name: str):
    task = load_task(name, ["engine=detectron2"]).resolved()
    assert departures(task) == ()


def test_another_engine_is_a_departure():
    task = load_task("voc0712_det", ["engine=torchvision"])
    assert departures(task) == ("departs from voc0712_det in engine: torchvision",)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("set.SOLVER.IMS_PER_BATCH=8", "schedule: SOLVER.IMS_PER_BATCH 8"),
        ("set.SOLVER.BASE_LR=0.01", "schedule: SOLVER.BASE_LR 0.01"),
        ("set.SOLVER.STEPS=[9, 10]", "schedule: SOLVER.STEPS [9, 10]"),
        ("set.TEST.PRECISE_BN.ENABLED=false", "schedule: PRECISE_BN.ENABLED False"),
        ("set.MODEL.RESNETS.NORM=BN", "trunk: RESNETS.NORM BN"),
        ("set.MODEL.RESNETS.DEPTH=101", "trunk: RESNETS.DEPTH 101"),
        ('set.MODEL.RESNETS.OUT_FEATURES=["res5"]', 'trunk: RESNETS.OUT_FEATURES ["res5"]'),
        ("set.MODEL.ROI_MASK_HEAD.NAME=Other", "heads: ROI_MASK_HEAD.NAME Other"),
        ("set.MODEL.BACKBONE.FREEZE_AT=2", "trunk: BACKBONE.FREEZE_AT 2"),
        ("set.INPUT.MIN_SIZE_TEST=600", "resolution: INPUT.MIN_SIZE_TEST 600"),
        ("set.MODEL.RPN.POST_NMS_TOPK_TEST=300", "proposals: RPN.POST_NMS_TOPK_TEST 300"),
        ("set.MODEL.ROI_HEADS.NUM_CLASSES=3", "proposals: ROI_HEADS.NUM_CLASSES 3"),
        ("set.TEST.DETECTIONS_PER_IMAGE=50", "other settings: TEST.DETECTIONS_PER_IMAGE 50"),
        ('train=["voc2007/train"]', "data: voc2007/train -> voc2007/test"),
        ("test=voc2007/val", "data: voc2007/trainval + voc2012/trainval -> voc2007/val"),
        ("metric=voc12", "metric: voc12"),
    ],
)
def test_what_leaves_the_protocol_is_one_line(override: str, told: str):
    found = departures(load_task("voc0712_det", [override]))
    assert found == (f"departs from voc0712_det in {told}",)


def test_settings_of_one_subject_share_a_line():
    overrides = ["set.SOLVER.MAX_ITER=9", "set.SOLVER.STEPS=[]", "seed=3"]
    assert departures(load_task("voc0712_det", overrides)) == (
        "departs from voc0712_det in schedule: SOLVER.MAX_ITER 9, SOLVER.STEPS []",
    )


def test_writing_detectron2s_own_default_is_no_departure():
    defaults = ["set.MODEL.RPN.SMOOTH_L1_BETA=0.0", "set.MODEL.RPN.NMS_THRESH=0.7"]
    assert departures(load_task("voc0712_det", defaults)) == ()


def test_an_edited_recipe_departs_and_a_twin_says_all_it_changes(tmp_path: Path):
    table = {**read_recipe(recipe_path("pascal_voc_R_50_C4_24k")), "SOLVER": {"MAX_ITER": 9}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(table))
    own = load_task("voc0712_det", [f"recipe={tmp_path / 'mine.yaml'}"])
    assert "SOLVER.MAX_ITER 9" in " ".join(departures(own))
    twin = " ".join(departures(load_task("voc_det_twin")))
    assert "data: voc2007/trainval -> voc2007/test" in twin and "SOLVER.MAX_ITER 8" in twin


def test_a_task_of_ones_own_has_no_protocol_unless_it_names_one(tmp_path: Path):
    own = tmp_path / "mine.toml"
    own.write_text(f'extends = "{TASKS_DIR / "voc0712_det.toml"}"\ntask = "mine"\n')
    assert departures(load_task(own)) == ()
    assert check(load_task(own), UNOFFICIAL, UNOFFICIAL) == ()
    with pytest.raises(ProtocolError, match="mine names no published protocol"):
        check(load_task(own, ["strict=true"]), OFFICIAL, OFFICIAL)
    with pytest.raises(ConfigError, match="protocol 'voc0713' is no file"):
        departures(load_task(own, ["protocol=voc0713"]))


def test_data_that_are_not_the_released_ones_are_one_more_line():
    task = load_task("voc0712_det")
    assert check(task, OFFICIAL, OFFICIAL) == ()
    assert check(task, UNOFFICIAL, UNOFFICIAL) == (
        "departs from voc0712_det in content of the data: voc2007/test has 9 of 4952 images",
    )


def test_scored_alone_only_the_test_departs():
    other = ["engine=torchvision", "set.SOLVER.MAX_ITER=9", "metric=voc12", "test=voc2007/val"]
    assert departures_of_test(load_task("voc0712_det", other), UNOFFICIAL) == (
        "departs from voc0712_det in metric: voc12",
        "departs from voc0712_det in data: tested on voc2007/val",
        "departs from voc0712_det in content of the data: voc2007/test has 9 of 4952 images",
    )
    assert departures_of_test(load_task("voc0712_det"), OFFICIAL) == ()


def test_a_strict_task_is_refused_with_the_whole_list():
    task = load_task("voc0712_det", ["engine=torchvision", "metric=voc12", "strict=true"])
    with pytest.raises(ProtocolError) as caught:
        check(task, OFFICIAL, UNOFFICIAL)
    said = str(caught.value)
    assert "metric: voc12" in said and "engine: torchvision" in said and "9 of 4952" in said
    assert "run without --strict" in said


def test_a_strict_task_that_is_its_protocol_passes():
    task = load_task("voc0712_det", ["engine=detectron2", "strict=true"])
    assert check(task, OFFICIAL, OFFICIAL) == ()


def test_strictness_is_no_part_of_what_a_run_is():
    def mark(*overrides: str) -> str:
        return fingerprint(Detection(load_task("voc_det_twin", overrides)).resolved(), {}, {})

    assert mark() == mark("strict=true") == mark("published_runs=3")


def test_only_the_protocol_itself_is_held_to_its_published_runs():
    assert Detection(load_task("voc0712_det")).published_runs == 5
    assert Detection(load_task("voc_det_twin")).published_runs == 1


def test_built_in_scenes_are_not_the_released_data(scenes: DataRoots):
    train, test = read_data(twin_task("c4"), scenes)
    assert train.unofficial[0].startswith("voc2007/trainval has ")
    assert " of 5011 images" in train.unofficial[0] and " of 20 classes" in train.unofficial[0]
    assert " of 4952 images" in test.unofficial[0]


def test_a_strict_run_ends_before_anything_is_trained(scenes: DataRoots, tmp_path: Path):
    task = twin_task("c4").model_copy(update={"strict": True})
    with pytest.raises(ProtocolError, match="strict and not its protocol"):
        run_detection(task, scenes, write_random_weights(tmp_path / "w.pkl", "c4"), tmp_path / "o")
    assert not (tmp_path / "o/checkpoints").exists()


@pytest.mark.slow
def test_the_command_refuses_when_strict(scenes: DataRoots, tmp_path: Path):
    weights = write_random_weights(tmp_path / "w.pkl", "c4")
    words = ["run", "voc_det_twin", "--weights", weights, "--out", tmp_path / "o", "--strict"]
    done = subprocess.run(
        [sys.executable, "-m", "transfer", *words, "--data", scenes.root],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: task voc_det_twin is strict and not its protocol" in done.stderr
    assert "departs from voc0712_det in content of the data" in done.stderr


@pytest.mark.slow
def test_every_departure_is_printed_and_stands_beside_the_numbers(
    scenes: DataRoots, tmp_path: Path
):
    weights = write_random_weights(tmp_path / "w.pkl", "c4")
    task = twin_task("c4", engine="torchvision")
    run_detection(task, scenes, weights, tmp_path / "o")
    notes = read_results(tmp_path / "o/results.json")[0].footnotes
    told = (tmp_path / "o/log.txt").read_text()
    for subject in ("engine: torchvision", "schedule:", "trunk:", "content of the data:"):
        line = next(note for note in notes if f"departs from voc0712_det in {subject}" in note)
        assert line in told


def test_finished_numbers_that_depart_are_refused_by_their_own_footnotes(tmp_path: Path):
    official = load_task("voc0712_det", ["engine=detectron2", "strict=true"])

    def noted(*footnotes: str) -> list[Result]:
        return [Result(task="voc0712_det", metric="AP", value=1.0, footnotes=footnotes)]

    require_protocol(official, noted("a note of the weights"), tmp_path)
    told = "departs from voc0712_det in content of the data: 9 of 4952 images"
    with pytest.raises(ProtocolError, match="is finished and not the protocol") as caught:
        require_protocol(official, noted("a note", told), tmp_path)
    assert str(tmp_path) in str(caught.value) and told in str(caught.value)
    assert "a note" not in str(caught.value)
    with pytest.raises(ProtocolError, match="trained in bf16"):
        require_protocol(load_task("voc0712_det", ["precision=bf16"]), noted(), tmp_path)
