"""Detectron2's own way of loading ``MODEL.WEIGHTS`` takes every tensor of a converted file."""

import logging
from pathlib import Path

import pytest
import torch
from checkpoints import make_backbone, write_checkpoint
from typer.testing import CliRunner

from transfer.__main__ import app
from transfer.detectron2_parity import _detector
from transfer.layouts import to_layout
from transfer.weights import load_weights

pytestmark = pytest.mark.d2
HOMES = ("backbone.stem.", "backbone.res", "backbone.bottom_up.", "roi_heads.res5.")


def of_trunk(name: str) -> bool:
    """Whether the weights must bring a tensor; frozen norms count no batches."""
    return (
        name.startswith(HOMES) and "fpn_" not in name and not name.endswith("num_batches_tracked")
    )


def convert(checkpoint: Path, layout: str, out: Path) -> Path:
    arguments = ["convert", checkpoint, "--layout", layout, "--out", out]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "compared with detectron2" in result.output
    return out


def resume_or_load(weights: Path, layout: str, folder: Path):
    """What ``DefaultTrainer`` does before its first iteration; also return what it warned of."""
    from detectron2.checkpoint import DetectionCheckpointer

    backbone = make_backbone(folder)
    model, _ = _detector(backbone, load_weights(weights)[1], layout)
    said = []
    logger = logging.getLogger("fvcore.common.checkpoint")
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        left = DetectionCheckpointer(model, str(folder)).resume_or_load(str(weights), resume=False)
    finally:
        logger.removeHandler(handler)
    return model, left, said


@pytest.mark.parametrize("ending", ["pkl", "pth"])
@pytest.mark.parametrize("layout", ["c4", "fpn"])
def test_the_checkpointer_misses_no_tensor_of_the_trunk(layout, ending, tmp_path: Path):
    weights = convert(write_checkpoint(tmp_path), layout, tmp_path / f"w.{ending}")
    model, _, said = resume_or_load(weights, layout, tmp_path)
    state = model.state_dict()
    expected = to_layout(make_backbone(tmp_path).state, layout)
    assert len(expected) == 265
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert {name for name in state if of_trunk(name)} == set(expected)
    warned = "\n".join(said)
    assert [line for line in warned.splitlines() if of_trunk(line)] == []
    assert "not used by the model" not in warned


@pytest.mark.parametrize("ending", ["pkl", "pth"])
def test_default_trainers_flow_starts_at_the_first_iteration(ending: str, tmp_path: Path):
    weights = convert(write_checkpoint(tmp_path), "fpn", tmp_path / f"w.{ending}")
    _, left, _ = resume_or_load(weights, "fpn", tmp_path)
    assert left.get("iteration", -1) + 1 == 0
    assert not left.get("matching_heuristics", False)


@pytest.mark.parametrize("layout", ["c4", "fpn"])
def test_safetensors_are_checked_in_detectron2_too(layout: str, tmp_path: Path):
    convert(write_checkpoint(tmp_path), layout, tmp_path / "w.safetensors")
