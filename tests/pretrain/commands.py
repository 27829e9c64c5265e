"""The command line as a user calls it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.config import PretrainConfig
from sslbench.log import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def write_toml(cfg: PretrainConfig, path: Path) -> Path:
    """Write a config as a user would, without the images."""
    pairs = _flat(json.loads(cfg.model_dump_json()))
    lines = [f"{key} = {json.dumps(value)}" for key, value in pairs if key != "images"]
    path.write_text("\n".join(lines))
    return path


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def start_command(*words: object) -> subprocess.Popen[str]:
    """Start ``python -m pretrain`` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pretrain", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_steps(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until the run has logged that many steps."""
    while len(read_metrics(folder / "metrics.jsonl")) < count:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
