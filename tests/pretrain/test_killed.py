"""A run that is killed again and again ends with the bits of one that was left alone."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from pretrain.config import PretrainConfig
from sslbench.config import build
from sslbench.stage import artifacts, status
from tests.pretrain.compare import assert_equal, masks, rows

ROOT = Path(__file__).resolve().parents[2]
KILLS = 20
KEPT = [3, 4, 15, 30]


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(tiny, image_dir, tmp_path):
    table = json.loads(tiny.model_dump_json())
    table["method"] |= {"warmup_epochs": 3, "refresh_masks_every": 3, "clustering_every": 3}
    table["method"]["masks"]["iterations"] = 40  # so that a good share of the kills meets them
    table["optimizer"]["lr"] = 0.5
    table["schedule"] |= {"epochs": 30, "keep_epochs": KEPT, "save_every_steps": 1}
    config = tmp_path / "config.json"
    config.write_text(build(PretrainConfig, table, where="test").model_dump_json())

    script = str(Path(__file__).with_name("kill_often.py"))
    command = [sys.executable, script, str(config), str(image_dir), str(tmp_path), str(KILLS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    met = Counter(json.loads(done.stdout))
    print(f"{KILLS} kills: {dict(met)}")
    assert met.total() == KILLS and len(met) >= 4, met

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    attempts = json.loads((killed / "stage.json").read_text())["attempts"]
    assert status(killed) == "done" and KILLS / 2 < len(attempts) <= KILLS + 1
    for name in ["last.pt", *(f"epoch_{epoch:04d}.pt" for epoch in KEPT)]:
        paths = (folder / "checkpoints" / name for folder in (whole, killed))
        assert_equal(*(torch.load(path, weights_only=True) for path in paths))
    assert rows(killed) == rows(whole) and len(rows(whole)) == 60
    assert masks(killed) == masks(whole)
    assert artifacts(killed) == artifacts(whole)
    assert not list(killed.rglob("*.tmp")) and not list(killed.rglob("*.partial"))
