"""python -m transfer, as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from typer.testing import CliRunner

from transfer.__main__ import app

ROOT = Path(__file__).resolve().parents[2]


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_needs_no_torch():
    code = "import sys, transfer.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_convert_prints_the_parity_and_the_path(tmp_path: Path):
    checkpoint, out = write_checkpoint(tmp_path), tmp_path / "out"
    for _ in range(2):  # the second time it is already done
        result = invoke("convert", checkpoint, "--layout", "fpn", "--out", out)
        assert result.exit_code == 0, result.output
        lines = result.output.split("\n")
        assert lines[0].startswith("res2  max|a-b|")
        assert result.output.replace("\n", "").endswith(f"{out}/weights.pkl")


def test_a_folder_of_another_conversion_is_not_overwritten(tmp_path: Path):
    checkpoint, out = write_checkpoint(tmp_path), tmp_path / "out"
    assert invoke("convert", checkpoint, "--layout", "fpn", "--out", out).exit_code == 0
    before = (out / "weights.pkl").read_bytes()
    result = invoke("convert", checkpoint, "--layout", "c4", "--out", out)
    assert result.exit_code == 1
    assert "was made by another convert" in result.output
    assert (out / "weights.pkl").read_bytes() == before


def test_inspect_describes_checkpoints_and_weights(tmp_path: Path):
    checkpoint, out = write_checkpoint(tmp_path), tmp_path / "out"
    found = json.loads(invoke("inspect", checkpoint).output)
    online = found["branches"]["online"]
    assert (online["format"], online["prefix"]) == ("torchvision", "")
    assert (online["depth"], online["width"], online["tensors"]) == (50, 0.125, 265)
    invoke("convert", checkpoint, "--layout", "fpn", "--out", out)
    weights = json.loads(invoke("inspect", out / "weights.pkl").output)
    assert (weights["tensors"], weights["layout"], weights["format"]) == (265, "fpn", "RGB")
    assert weights["sha256"] == found["sha256"]
    assert weights["digest"] == online["digest"]  # the same trunk, whatever the names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inspect", "missing.pth"), "no such file"),
        (("convert", "missing.pth", "--layout", "c4"), "does not exist"),
    ],
)
def test_errors_are_one_paragraph(arguments, words: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output
