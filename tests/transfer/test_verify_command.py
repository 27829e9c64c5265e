"""python -m transfer verify, as a user types it."""

import json
from pathlib import Path

import pytest
from checkpoints import make_backbone
from test_parity import written
from test_transfer_commands import invoke
from test_verify_config import MSRA_FPN, RIGHT

from transfer.verify import verification


@pytest.fixture(autouse=True)
def only_ours(monkeypatch):
    monkeypatch.setattr(verification, "has_detectron2", lambda: False)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return written(make_backbone(tmp_path), "fpn", tmp_path)


def test_right_weights_and_settings_exit_with_zero(weights: Path, tmp_path: Path):
    (tmp_path / "my.yaml").write_text(RIGHT)
    checkpoint, recipe = tmp_path / "r50.pth", tmp_path / "my.yaml"
    result = invoke("verify", weights, "--against", checkpoint, "--config", recipe)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("weights    file weights.pkl, author sslbench, depth 50")
    assert any(line.startswith("checkpoint res2 ") for line in lines)
    assert lines[-1] == "verified: 0 errors, 0 warnings"


def test_every_finding_is_one_line_and_errors_come_first(weights: Path, tmp_path: Path):
    (tmp_path / "my.yaml").write_text(MSRA_FPN)
    result = invoke("verify", weights, "--config", tmp_path / "my.yaml")
    assert result.exit_code == 1
    severities = [line.split()[0] for line in result.output.splitlines()[3:-1]]
    assert severities == ["error"] * 4 + ["warning"] * 3 + ["note"] * 2
    assert result.output.splitlines()[-1] == "NOT verified: 4 errors, 3 warnings"


def test_json_is_one_record(weights: Path, tmp_path: Path):
    (tmp_path / "my.yaml").write_text(MSRA_FPN)
    result = invoke("verify", weights, "--config", tmp_path / "my.yaml", "--json")
    assert result.exit_code == 1
    record = json.loads(result.output)
    assert record["passed"] is False
    assert record["weights"]["loaded"] == "265 of 265"
    first = record["findings"][0]
    assert (first["severity"], first["subject"]) == ("error", "INPUT.FORMAT")
    assert first["way_out"] == "Write INPUT: {FORMAT: RGB}"
    assert set(first["levels"]) == {"res2", "res3", "res4", "res5"}


def test_what_cannot_be_checked_is_one_paragraph(weights: Path, tmp_path: Path):
    result = invoke("verify", weights, "--config", tmp_path / "gone.yaml")
    assert result.exit_code == 1
    assert "no such file" in result.output
    assert "Traceback" not in result.output
