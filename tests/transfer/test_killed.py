"""SIGKILL at random moments of every phase, and signals to whole commands."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from detection_process import ROOT, Command, ended, wait_for_rows
from detectors import rows_of_losses, twin_task, write_random_weights

from sslbench.datasets import DataRoots
from sslbench.files import file_sha256
from sslbench.stage import status

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.d2)]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_killed_in_every_phase_ends_in_the_bytes_of_an_undisturbed_one(
    engine: str, scenes: DataRoots, tmp_path: Path
):
    overrides = ["set.SOLVER.MAX_ITER=7", "checkpoint_every=2", "evaluate_every=3"]
    task = twin_task("fpn", engine, overrides)
    (tmp_path / "task.json").write_text(task.model_dump_json())
    weights = write_random_weights(tmp_path / "w.pkl", "fpn")
    words = [tmp_path / "task.json", scenes.root, weights, tmp_path]
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_detection.py")), *map(str, words)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["left"]  # no loader process outlives its run
    assert len(found["met"]) >= 12 and len(set(found["met"])) >= 5, found["met"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    made = ("results.json", "predictions.json", "detections.png", "history.json")
    for name in (*made, "checkpoints/last.pt", "checkpoints/final.pt"):
        assert file_sha256(whole / name) == file_sha256(killed / name), name
    rows = [_by_step(rows_of_losses(folder)) for folder in (whole, killed)]
    assert rows[0] == rows[1]
    assert not (killed / "predictions.parts").exists() and status(killed) == "done"


def _by_step(rows: list[dict]) -> list[dict]:
    """Rows of an evaluation that was killed between its two files are written twice."""
    return [row for index, row in enumerate(rows) if row not in rows[:index]]


@pytest.mark.slow
def test_ctrl_c_to_all_processes_of_a_run_saves_and_the_same_command_continues(
    scenes: DataRoots, tmp_path: Path
):
    """As terminals and schedulers send it: to loader processes too."""
    task = twin_task("c4", overrides=["set.SOLVER.MAX_ITER=40", "set.SOLVER.STEPS=[30]"])
    run = Command(task, scenes, write_random_weights(tmp_path / "w.pkl", "c4"), tmp_path)
    ended(run.start("whole"))
    stopped = run.start("stopped", workers=2)
    wait_for_rows(tmp_path / "stopped", 3, stopped)
    os.killpg(stopped.pid, signal.SIGINT)
    said = ended(stopped, code=130)
    assert "asked to stop: saved after iteration" in said
    assert "interrupted; run the same command to continue" in said and "Traceback" not in said
    assert "continuing at iteration" in ended(run.start("stopped"))
    for name in ("results.json", "predictions.json", "checkpoints/final.pt"):
        assert file_sha256(tmp_path / "whole" / name) == file_sha256(tmp_path / "stopped" / name)


PREDICTING = """
import os, signal
from transfer.evaluators.parts import PartWriter
add = PartWriter.add
def signalled(self, index, rows):
    add(self, index, rows)
    if index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
PartWriter.add = signalled
"""


@pytest.mark.slow
def test_a_signal_while_predicting_ends_at_once_and_keeps_the_images_done(
    scenes: DataRoots, tmp_path: Path
):
    task = twin_task("c4", overrides=["set.SOLVER.MAX_ITER=1"])
    run = Command(task, scenes, write_random_weights(tmp_path / "w.pkl", "c4"), tmp_path)
    ended(run.start("out", hook=PREDICTING), code=130)
    assert status(tmp_path / "out") == "resumable"
    assert "2 of 4 images are predicted already" in ended(run.start("out"))
