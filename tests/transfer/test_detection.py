"""The detection stage from weights to results."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from detectors import run_detection, twin_task, write_random_weights
from PIL import Image

from sslbench.datasets import DataError, DataRoots
from sslbench.log import RunLog
from sslbench.results import read_results
from sslbench.stage import status
from transfer import detection
from transfer.convert import Convert, ConvertConfig
from transfer.detection import read_data, usable
from transfer.weights import load_weights, write_weights

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.d2)]
METRICS = {"c4": {"AP", "AP50", "AP75"}, "fpn": {"box_AP", "box_AP50", "mask_AP", "mask_AP75"}}


@pytest.mark.parametrize("layout", ["c4", "fpn"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_stage_goes_from_weights_to_results(
    engine: str, layout: str, scenes: DataRoots, tmp_path: Path
):
    task = twin_task(layout, engine, ["set.SOLVER.MAX_ITER=4"])
    weights = write_random_weights(tmp_path / "w.pkl", layout)
    out = run_detection(task, scenes, weights, tmp_path / "out")

    assert status(out) == "done"
    results = {result.metric: result for result in read_results(out / "results.json")}
    assert METRICS[layout] <= set(results)
    first = next(iter(results.values()))
    assert first.engine == engine and first.num_images == 4 and first.data_id
    assert any("schedule" in note for note in first.footnotes)
    assert Image.open(out / "detections.png").height > 100
    assert (out / "checkpoints" / "final.pt").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_of_another_trunk_are_trained_and_the_departure_is_noted(
    engine: str, scenes: DataRoots, tmp_path: Path
):
    task = twin_task("fpn", engine, ["set.SOLVER.MAX_ITER=1"])
    weights = write_random_weights(tmp_path / "w.pkl", "fpn", width=0.25)
    out = run_detection(task, scenes, weights, tmp_path / "out")
    (trunk,) = (n for n in read_results(out / "results.json")[0].footnotes if "in trunk" in n)
    assert "RES2_OUT_CHANNELS 64" in trunk


def test_rescaled_weights_are_noted_wherever_they_come_from(scenes: DataRoots, tmp_path: Path):
    task = twin_task("fpn", "torchvision", ["set.SOLVER.MAX_ITER=1"])
    arrays, said = load_weights(write_random_weights(tmp_path / "w.pkl", "fpn"))
    write_weights(tmp_path / "r.pkl", arrays, said | {"rescale": {"constant": 0.1, "factors": {}}})
    out = run_detection(task, scenes, tmp_path / "r.pkl", tmp_path / "out")
    stage = Convert(ConvertConfig(layout="fpn", rescale=0.1))
    assert set(stage.footnotes()) <= set(read_results(out / "results.json")[0].footnotes)


@pytest.fixture(scope="module")
def finished(scenes: DataRoots, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run of the FPN twin, and its weights."""
    folder = tmp_path_factory.mktemp("finished")
    weights = write_random_weights(folder / "w.pkl", "fpn")
    return run_detection(SHORT, scenes, weights, folder / "out"), weights


SHORT = twin_task("fpn", overrides=["set.SOLVER.MAX_ITER=4"])
ORDER = ["checkpoints/final.pt", "predictions.json", "results.json", "done.json"]


@pytest.mark.parametrize("lost", ORDER[:-1])
def test_a_stage_killed_before_a_file_was_written_finishes_with_the_same_results(
    lost: str, finished: tuple[Path, Path], scenes: DataRoots, tmp_path: Path
):
    whole, weights = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for name in ORDER[ORDER.index(lost) :]:
        (out / name).unlink()
    run_detection(SHORT, scenes, weights, out)
    for name in ("predictions.json", "results.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_the_stage_keeps_the_numbers_of_each_class_and_what_found_them(finished: tuple[Path, Path]):
    kept = json.loads((finished[0] / "classes.json").read_text())
    assert kept["evaluator"].startswith("hotcoco ")
    rows = json.loads((finished[0] / "predictions.json").read_text())
    assert kept["num_detections"] == len(rows)
    assert {"name", "category_id", "box_AP", "mask_AP75"} <= set(kept["classes"][0])


KILLED = """
import importlib, os, signal, sys
from pathlib import Path
from detectors import run_detection
from sslbench.datasets import DataRoots
from transfer.task import TaskConfig

module, name, calls, task, root, weights, out = sys.argv[1:]
whole, left = getattr(importlib.import_module(module), name), int(calls)

def until_killed(*args, **options):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args, **options)

setattr(sys.modules[module], name, until_killed)
run_detection(
    TaskConfig.model_validate_json(task), DataRoots(Path(root)), Path(weights), Path(out)
)
"""


@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [
        ("transfer.evaluators.predictions", "rows_of", "3"),  # the third of four images
        ("shutil", "rmtree", "1"),  # the parts are merged but not yet removed
        ("transfer.evaluators", "evaluate", "1"),
        ("sslbench.results", "write_results", "1"),  # after the pictures
    ],
)
def test_a_stage_killed_in_prediction_or_evaluation_finishes_with_the_same_results(
    module: str,
    name: str,
    calls: str,
    finished: tuple[Path, Path],
    scenes: DataRoots,
    tmp_path: Path,
):
    whole, weights = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for made in (*ORDER[1:], "detections.png"):
        (out / made).unlink()
    arguments = (module, name, calls, SHORT.model_dump_json(), scenes.root, weights, out)
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert status(out) == "resumable"
    assert (out / "predictions.json").exists() == (name != "rows_of")
    run_detection(SHORT, scenes, weights, out)
    assert not (out / "predictions.parts").exists()
    for made in ("predictions.json", "results.json", "detections.png"):
        assert (out / made).read_bytes() == (whole / made).read_bytes()


def test_boxes_of_zero_area_and_empty_images_are_dropped_and_counted(
    scenes: DataRoots, tmp_path: Path
):
    records = list(read_data(twin_task("c4"), scenes)[0].records)
    first = records[0].objects[0]
    flat = replace(first, box=(3.0, 3.0, 3.0, 8.0))
    records[0] = replace(records[0], objects=(first, flat))
    records[1] = replace(records[1], objects=(flat,))
    with RunLog(tmp_path) as log:
        kept = usable(records, log, drop_empty=True)
    assert len(kept) == len(records) - 1 and kept[0].objects == (first,)
    said = (tmp_path / "log.txt").read_text()
    assert (
        "2 objects without any area dropped" in said and "1 training images without objects" in said
    )


def test_no_training_object_at_all_is_refused(scenes: DataRoots, tmp_path: Path):
    record = replace(read_data(twin_task("c4"), scenes)[0].records[0], objects=())
    with RunLog(tmp_path) as log, pytest.raises(DataError, match="no training image has an object"):
        usable([record], log, drop_empty=True)


def test_a_test_set_without_objects_is_refused(scenes: DataRoots, monkeypatch: pytest.MonkeyPatch):
    def without_objects(spec: str, roots: DataRoots):
        dataset = read(spec, roots)
        bare = tuple(replace(record, objects=()) for record in dataset.records)
        return replace(dataset, records=bare)

    read = detection.read
    monkeypatch.setattr(detection, "read", without_objects)
    with pytest.raises(DataError, match=r"voc2007/test has no image with objects"):
        read_data(twin_task("c4"), scenes)


def test_a_recipe_for_other_classes_is_refused(scenes: DataRoots):
    task = twin_task("c4", overrides=["set.MODEL.ROI_HEADS.NUM_CLASSES=20"])
    with pytest.raises(DataError, match=r"has \d+ classes.*expects 20"):
        read_data(task, scenes)


def test_a_broken_test_image_is_named_before_anything_is_learned(scenes: DataRoots, tmp_path: Path):
    root = tmp_path / "data"
    shutil.copytree(scenes.root, root)
    broken = read_data(SHORT, DataRoots(root))[1].records[-1].path
    broken.write_bytes(broken.read_bytes()[:700])
    weights = write_random_weights(tmp_path / "w.pkl", SHORT.layout)
    with pytest.raises(DataError, match=rf"{broken} .*cannot be decoded"):
        run_detection(SHORT, DataRoots(root), weights, tmp_path / "out")
    assert not list((tmp_path / "out/checkpoints").glob("*.pt"))


def test_a_broken_training_image_is_named(scenes: DataRoots, tmp_path: Path):
    root = tmp_path / "data"
    shutil.copytree(scenes.root, root)
    data = DataRoots(root)
    task = twin_task("c4")
    for record in read_data(task, data)[0].records:
        record.path.write_bytes(record.path.read_bytes()[:900])
    weights = write_random_weights(tmp_path / "w.pkl", "c4")
    with pytest.raises(DataError, match=r"\d{6}\.jpg"):
        run_detection(task, data, weights, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["c4", "fpn"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_detector_learns_its_training_pictures(
    engine: str, layout: str, scenes: DataRoots, tmp_path: Path
):
    same = {"c4": "test=voc2007/trainval", "fpn": "test=coco2017/train"}[layout]
    task = twin_task(layout, engine, [same, *OVERFIT])
    weights = write_random_weights(tmp_path / "w.pkl", layout)
    out = run_detection(task, scenes, weights, tmp_path / "out")
    values = {result.metric: result.value for result in read_results(out / "results.json")}
    assert values["AP50" if layout == "c4" else "box_AP50"] > 50, json.dumps(values)


OVERFIT = (
    "set.SOLVER.MAX_ITER=240",
    "set.SOLVER.STEPS=[200]",
    "set.SOLVER.WARMUP_ITERS=10",
    "set.SOLVER.BASE_LR=0.05",
    "set.TEST.PRECISE_BN.NUM_ITER=10",
    "set.SOLVER.IMS_PER_BATCH=4",
    "set.INPUT.MIN_SIZE_TRAIN=[128]",
    "set.INPUT.MIN_SIZE_TEST=128",
    "set.INPUT.RANDOM_FLIP=none",
)
