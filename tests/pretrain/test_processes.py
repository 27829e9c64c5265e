"""Several processes: the same numbers as one, a clean end where one dies, and a clean resume."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.config import PretrainConfig
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


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(config, image_dir, tmp_path):
    """Groups of 3 images span the processes, whose BatchNorm sees the whole batch of 8."""
    clustering = {"max_clusters": 8, "images_per_group": 3, "iterations": 4}
    path = config(20, {**GRID, "clustering_every": 2, "clustering": clustering})
    for processes in (1, 2):
        run(processes, path, image_dir, tmp_path / str(processes), "double")
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) == 20 and max(one) - min(one) > 0.1
    assert two == pytest.approx(one, abs=1e-5)


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
def test_a_rank_that_dies_ends_the_run_and_the_same_command_continues(config, image_dir, tmp_path):
    path, out = config(60, GRID), tmp_path / "run"
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        start(1, path, image_dir, out, RANK=str(rank), LOCAL_RANK=str(rank), **address)
        for rank in (0, 1)
    ]
    while len(losses(out)) < 3:
        assert ranks[0].poll() is None
        time.sleep(0.05)
    ranks[1].kill()
    said, _ = ranks[0].communicate(timeout=120)
    assert ranks[0].returncode == 1
    assert "error: rank 0 of 2: another process of this run died" in said
    assert "Traceback" not in said
    assert status(out) == "resumable"
    said = run(1, path, image_dir, out)  # one process may continue what two began
    assert int(re.search(r"continuing after step (\d+) of 60", said)[1]) >= 2
    assert len(losses(out)) == 60 and status(out) == "done"


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
