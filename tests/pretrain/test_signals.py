"""Signals: what a user or a scheduler sends ends a run in one clean sentence."""

import json
import os
import re
import signal

import pytest
import torch

from pretrain.config import PretrainConfig
from sslbench.config import build
from tests.pretrain.commands import start_command, wait_for_steps, write_toml


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_loader_workers_too_ends_in_one_sentence(number, tiny, image_dir, tmp_path):
    """Ctrl-C and schedulers signal the whole process group, not the main process alone."""
    table = json.loads(tiny.model_dump_json())
    table["method"] |= {"warmup_epochs": 0, "refresh_masks_every": 0, "masks": {"source": "grid"}}
    table["schedule"] |= {"epochs": 2000, "keep_epochs": []}
    config = write_toml(build(PretrainConfig, table, where="test"), tmp_path / "tiny.toml")
    out = tmp_path / "run"
    run = start_command(config, f"images={image_dir}", "--workers", 2, "--out", out)
    wait_for_steps(out, 3, run)
    os.killpg(run.pid, number)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; run the same command to continue"
    assert "Traceback" not in said and "Error" not in said
    saved = int(re.search(r"asked to stop: saved after step (\d+)", said)[1])
    state = torch.load(out / "checkpoints/last.pt", weights_only=True)
    assert state["step"] == saved >= 3
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)  # no worker outlives the run
