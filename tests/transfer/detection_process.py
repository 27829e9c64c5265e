"""A detection run as one process or several, for tests that kill it and count them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from sslbench.datasets import DataRoots
from sslbench.log import read_metrics
from transfer.task import TaskConfig

ROOT = Path(__file__).resolve().parents[2]


class Command:
    """One task on some data, to be started as often as needed."""

    def __init__(self, task: TaskConfig, data: DataRoots, weights: Path, folder: Path) -> None:
        self.task, self.data, self.weights, self.folder = task, data, weights, folder
        folder.mkdir(parents=True, exist_ok=True)

    def start(
        self, out: str, *, workers: int = 0, hook: str = "", **environment: str
    ) -> subprocess.Popen:
        """Start a process that works in ``out``, in a group of its own."""
        task = self.folder / "task.json"
        task.write_text(self.task.model_dump_json())
        words = [task, self.data.root, self.weights, self.folder / out, workers, hook]
        paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        return subprocess.Popen(
            [sys.executable, str(ROOT / "tests/transfer/run_twin.py"), *map(str, words)],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def start_ranks(self, out: str, hooks: tuple[str, str] = ("", "")) -> list:
        """Start the two processes of one run."""
        pairs = zip(places(2), hooks, strict=True)
        return [self.start(out, hook=hook, **place) for place, hook in pairs]


def places(count: int) -> list[dict[str, str]]:
    """Environments of the processes of one run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def ended(process: subprocess.Popen, code: int = 0) -> str:
    """Wait for a process that should end with ``code``; return what it said."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def wait_for_rows(folder: Path, count: int, process: subprocess.Popen) -> None:
    """Wait until so many iterations are logged."""
    while len(read_metrics(folder / "metrics.jsonl")) < count:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
