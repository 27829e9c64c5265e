"""Several processes: the same numbers as one, a clean end where one dies, and a clean resume."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from devkit import write_devkit

from pretrain.config import LARSConfig, PretrainConfig
from sslbench import dist
from sslbench.config import build
from sslbench.log import read_metrics
from sslbench.stage import status

ROOT = Path(__file__).resolve().parents[2]
GRID = {"warmup_epochs": 0, "refresh_masks_every": 0, "masks": {"source": "grid"}}


@pytest.fixture
def config(tiny, tmp_path):
    """Write the tiny config with one step of 8 images per epoch, changed as asked."""

    def write(epochs: int, method: dict, **changes) -> Path:
        table = json.loads(tiny.model_dump_json()) | {"batch_size": 8} | changes
        table["method"] |= method
        table["schedule"] |= {"epochs": epochs, "keep_epochs": []}
        cfg = build(PretrainConfig, table, where="test")
        path = tmp_path / "config.json"
        path.write_text(cfg.model_dump_json())
        return path

    return write


def start(processes: int, *words: object, **environment: str) -> subprocess.Popen:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    script = str(ROOT / "tests/pretrain/run_config.py")
    return subprocess.Popen(
        [sys.executable, *(torchrun if processes > 1 else []), script, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(processes: int, *words: object) -> str:
    process = start(processes, *words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def curves(path: Path, image_dir: Path, tmp_path: Path, *words: str) -> list[list[float]]:
    """Losses of one process and of two."""
    for processes in (1, 2):
        run(processes, path, image_dir, tmp_path / str(processes), *words)
    return [losses(tmp_path / str(processes)) for processes in (1, 2)]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "clustering",
    [
        {"images_per_group": 2},
        {"images_per_group": 3},
        {"images_per_group": 3, "prototypes": "literal", "separate_step": True},
    ],
    ids=["within", "across", "literal"],
)
def test_two_processes_give_the_loss_curve_of_one(clustering, config, image_dir, tmp_path):
    """Groups of 2 images lie within a process, groups of 3 span them; BatchNorm sees all 8."""
    clustering = {"max_clusters": 8, "iterations": 4, **clustering}
    path = config(20, {**GRID, "clustering_every": 2, "clustering": clustering})
    one, two = curves(path, image_dir, tmp_path, "double")
    assert len(one) == 20 and max(one) - min(one) > 0.1
    assert two == pytest.approx(one, abs=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one_in_float32(config, image_dir, tmp_path):
    """At the rate with which a published run begins, scaled to this batch of 8.

    Larger ones let rounding grow from step to step.
    """
    start_of_warmup = LARSConfig().lr / 100
    clustering = {"max_clusters": 8, "iterations": 4, "images_per_group": 3}
    path = config(
        20,
        {**GRID, "clustering_every": 2, "clustering": clustering},
        optimizer={"lr": start_of_warmup},
    )
    one, two = curves(path, image_dir, tmp_path)
    assert len(one) == 20 and max(one) - min(one) > 0.1
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_masks_are_bootstrapped_by_two_processes(config, image_dir, tmp_path):
    """Warm-up, bootstrap and contrast: the whole method in two processes."""
    out = tmp_path / "run"
    run(2, config(3, {"refresh_masks_every": 3}), image_dir, out)
    assert status(out) == "done"
    for epoch in (2, 3):
        manifest = json.loads((out / f"masks/epoch_000{epoch}/manifest.json").read_text())
        assert manifest["num_images"] == 10 and manifest["complete"]


@pytest.mark.slow
def test_two_processes_probe_as_one(config, image_dir, tmp_path):
    """Each extracts every other image: of 9 and of 5 one side gets one more."""
    write_devkit(image_dir, num_train=9, num_test=5)
    probe = {"every_epochs": 1, "train": "voc2007/trainval", "test": "voc2007/test"}
    path = config(2, {**GRID, "clustering_every": 2}, probe=probe | {"neighbours": 4})
    found = {}
    for processes in (1, 2):
        run(processes, path, image_dir, tmp_path / str(processes), "double")
        rows = read_metrics(tmp_path / str(processes) / "metrics.jsonl")
        found[processes] = [row["knn_mAP"] for row in rows if "knn_mAP" in row]
    assert len(found[1]) == 2
    assert found[2] == pytest.approx(found[1], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_dies_ends_the_run_and_the_same_command_continues(
    dead, config, image_dir, tmp_path
):
    path, out = config(60, GRID), tmp_path / "run"
    ranks = start_ranks(path, image_dir, out)
    wait_for_steps(out, 3, ranks[0])
    ranks[dead].kill()
    alive = ranks[1 - dead]
    said, _ = alive.communicate(timeout=120)
    assert alive.returncode == 1, said
    assert f"error: rank {1 - dead} of 2: another process of this run died" in said
    assert "Traceback" not in said
    assert status(out) == "resumable"
    said = run(1, path, image_dir, out)  # one process may continue what two began
    assert int(re.search(r"continuing after step (\d+) of 60", said)[1]) >= 2
    assert len(losses(out)) == 60 and status(out) == "done"


@pytest.mark.slow
def test_two_processes_continue_what_one_began_to_the_same_losses(config, image_dir, tmp_path):
    path, out = config(40, GRID | {"clustering_every": 2}), tmp_path / "run"
    run(1, path, image_dir, tmp_path / "whole", "double")
    one = start(1, path, image_dir, out, "double")
    wait_for_steps(out, 3, one)
    one.send_signal(signal.SIGTERM)
    said, _ = one.communicate(timeout=120)
    assert one.returncode == 130, said
    said = run(2, path, image_dir, out, "double")
    begun = int(re.search(r"continuing after step (\d+) of 40", said)[1])
    assert 3 <= begun < 40
    assert losses(out) == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_before_any_rank_leaves(config, image_dir, tmp_path):
    """A launcher kills the others as soon as one is gone: the file must be there by then."""
    path, out = config(400, GRID), tmp_path / "run"
    ranks = start_ranks(path, image_dir, out)
    wait_for_steps(out, 3, ranks[0])
    ranks[1].send_signal(signal.SIGUSR1)
    codes = [rank.wait(timeout=120) for rank in ranks]
    assert codes == [130, 130]
    said = ranks[0].stdout.read()
    saved = int(re.search(r"asked to stop: saved after step (\d+)", said)[1])
    state = torch.load(out / "checkpoints/last.pt", weights_only=True)
    assert state["step"] == saved == len(losses(out))


def start_ranks(*words: object) -> list[subprocess.Popen]:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    return [start(1, *words, RANK=str(r), LOCAL_RANK=str(r), **address) for r in (0, 1)]


def wait_for_steps(folder: Path, count: int, process: subprocess.Popen) -> None:
    while len(losses(folder)) < count:
        assert process.poll() is None
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}


def test_torchrun_and_srun_say_who_a_process_is():
    address = {"MASTER_ADDR": "gpu1", "MASTER_PORT": "123"}
    assert dist.membership({**TORCHRUN, **address}) == dist.Membership(3, 8, 1, "gpu1:123")
    nodes = {"SLURM_STEP_NODELIST": "gpu[03-05,9],cpu1", "SLURM_JOB_ID": "40007"}
    assert dist.membership({**SRUN, **nodes}) == dist.Membership(3, 8, 1, "gpu03:20007")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script outside srun
    ],
)
def test_one_process_is_alone(environment):
    assert dist.membership(environment) is None


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK"])
def test_a_half_set_environment_is_named(missing):
    environment = {k: v for k, v in TORCHRUN.items() if k != missing}
    with pytest.raises(ValueError, match=f"{missing} should be a number.*torchrun or srun"):
        dist.membership(environment)
