"""The parity check passes right weights and stops the mistakes that stay silent elsewhere."""

import dataclasses
from pathlib import Path

import pytest
import torch
from checkpoints import WRONG_PIXELS, make_backbone

from transfer import parity
from transfer.convert import metadata
from transfer.naming import to_detectron2
from transfer.parity import ParityError, check_parity, compare
from transfer.weights import write_weights


@pytest.fixture
def only_ours(monkeypatch):
    """Keep Detectron2 out, so that the independent trunk serves."""
    monkeypatch.setattr(parity, "has_detectron2", lambda: False)


def written(backbone, layout, folder: Path, change=None, **extra) -> Path:
    arrays = {k: v.numpy().copy() for k, v in to_detectron2(backbone.state, layout).items()}
    if change is not None:
        change(arrays)
    write_weights(folder / "weights.pkl", arrays, metadata(backbone, layout) | extra)
    return folder / "weights.pkl"


@pytest.mark.parametrize(
    ("layout", "depth", "width"),
    [("c4", 50, 0.125), ("fpn", 50, 0.125), ("c4", 18, 0.25), ("fpn", 34, 0.125)],
)
def test_right_weights_reach_the_goal(layout, depth, width, tmp_path: Path, only_ours):
    backbone = make_backbone(tmp_path, depth, width)
    record = check_parity(backbone, written(backbone, layout, tmp_path), layout)
    assert record["reference"] == "independent trunk"
    assert list(record["levels"]) == ["res2", "res3", "res4", "res5"]
    for level in record["levels"].values():
        assert level["relative"] <= parity.GOAL
        assert level["max_abs_original"] > 0.1


def swap_statistics(arrays):
    """What a converter does that pairs bn2 with conv1."""
    first, second = (f"backbone.bottom_up.res3.1.conv{i}.norm.running_mean" for i in (1, 2))
    arrays[first], arrays[second] = arrays[second], arrays[first]


@pytest.mark.parametrize(
    ("change", "extra"),
    [(swap_statistics, {}), *((None, wrong) for wrong in WRONG_PIXELS)],
)
def test_silent_mistakes_are_stopped(change, extra, tmp_path: Path, only_ours):
    backbone = make_backbone(tmp_path)
    path = written(backbone, "fpn", tmp_path, change, **extra)
    with pytest.raises(ParityError, match=r"differs from .* \(.*res5 "):
        check_parity(backbone, path, "fpn")


def test_one_wrong_weight_in_the_last_stage_is_found(tmp_path: Path, only_ours):
    backbone = make_backbone(tmp_path)

    def change(arrays):
        arrays["roi_heads.res5.2.conv3.norm.bias"][:] += 0.01

    with pytest.raises(ParityError, match=r"\(res5 "):
        check_parity(backbone, written(backbone, "c4", tmp_path, change), "c4")


def test_nan_and_other_shapes_are_infinitely_far():
    ours = {"res2": torch.ones(1, 2), "res3": torch.ones(1, 2)}
    theirs = {"res2": torch.full((1, 2), float("nan")), "res3": torch.ones(1, 3)}
    assert all(d.relative == float("inf") for d in compare(ours, theirs).values())


def test_the_difference_is_relative_to_the_largest_value():
    found = compare({"res2": torch.tensor([4.0, -8.0])}, {"res2": torch.tensor([4.0, -7.0])})
    assert found["res2"].relative == 1 / 8


def test_a_trunk_whose_own_maps_overflow_is_said_to_be_no_trained_network(tmp_path: Path):
    backbone = make_backbone(tmp_path)
    state = {k: v * 1e6 if v.ndim == 4 else v for k, v in backbone.state.items()}
    huge = dataclasses.replace(backbone, state=state)
    with pytest.raises(ParityError, match=r"its own trunk gives .* not finite"):
        check_parity(huge, written(huge, "fpn", tmp_path), "fpn")
