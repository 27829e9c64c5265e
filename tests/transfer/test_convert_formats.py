"""python -m transfer convert: layouts, formats, files of the user's naming, and the way back."""

import contextlib
import json
import pickle
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from typer.testing import CliRunner

from sslbench.checkpoint import load_backbone
from sslbench.config import ConfigError, departures
from sslbench.lock import LOCK_FILE
from transfer import convert as convert_module
from transfer.__main__ import app
from transfer.convert import Convert, ConvertConfig, _scratch_folder
from transfer.layouts import from_layout, to_layout
from transfer.weights import load_weights, write_weights

WAYS = [
    ("c4", "pkl"),
    ("c4", "pth"),
    ("fpn", "pkl"),
    ("fpn", "safetensors"),
    ("torchvision", "pth"),
    ("torchvision", "safetensors"),
]


def convert(checkpoint: Path, layout: str, out: Path, *more: object):
    arguments = ["convert", checkpoint, "--layout", layout, "--out", out, *more]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def converted(checkpoint: Path, layout: str, out: Path, *more: object) -> Path:
    result = convert(checkpoint, layout, out, *more)
    assert result.exit_code == 0, result.output
    return Path(result.output.rstrip("\n").rpartition("\n")[2])


def record_of(weights: Path) -> dict:
    return json.loads(weights.with_name(f"{weights.name}.parity.json").read_text())


@pytest.mark.parametrize(("layout", "ending"), WAYS)
def test_any_way_through_two_files_keeps_every_bit(layout: str, ending: str, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path)
    original = load_backbone(checkpoint)
    first = converted(checkpoint, layout, tmp_path / f"first.{ending}")
    for target in ("c4", "fpn", "torchvision"):
        back = converted(first, target, tmp_path / f"{target}.pth")
        arrays, said = load_weights(back)
        state = from_layout(arrays, target)
        assert state.keys() == original.state.keys()
        assert all(np.array_equal(state[k], v.numpy()) for k, v in original.state.items())
        assert said["sha256"] == original.sha256
        assert said["layout"] == target
        # whichever way the weights came, the file is the one that the checkpoint gives directly
        direct = converted(checkpoint, target, tmp_path / f"direct_{target}.pth")
        assert back.read_bytes() == direct.read_bytes()


@pytest.mark.parametrize(
    ("layout", "name"),
    [("c4", "weights.pkl"), ("fpn", "weights.pkl"), ("torchvision", "weights.pth")],
)
def test_a_run_folder_gets_the_format_of_the_layout(layout: str, name: str, tmp_path: Path):
    weights = converted(write_checkpoint(tmp_path), layout, tmp_path / "out")
    assert weights.name == name
    assert (tmp_path / "out" / "parity.json").exists()


def test_a_run_folder_gets_the_format_asked_for(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path)
    weights = converted(checkpoint, "c4", tmp_path / "out", "--format", "safetensors")
    assert weights.name == "weights.safetensors"
    assert load_weights(weights)[1]["layout"] == "c4"


def test_the_record_lies_beside_a_file_and_says_what_the_file_says(tmp_path: Path):
    weights = converted(write_checkpoint(tmp_path), "fpn", tmp_path / "new" / "moco.pth")
    assert sorted(p.name for p in weights.parent.iterdir()) == ["moco.pth", "moco.pth.parity.json"]
    record = record_of(weights)
    assert record["metadata"] == load_weights(weights)[1]
    assert record["output"]["bytes"] == weights.stat().st_size
    assert record["input"]["file"] == "r50.pth"


@pytest.mark.parametrize("layout", ["c4", "fpn", "torchvision"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_parity_is_checked_for_every_layout_and_format(layout: str, ending: str, tmp_path: Path):
    record = record_of(converted(write_checkpoint(tmp_path), layout, tmp_path / f"w.{ending}"))
    assert all(level["relative"] <= record["goal"] for level in record["levels"].values())
    assert record["reference"].startswith("torchvision ") == (layout == "torchvision")


def test_a_file_that_is_there_is_not_written_again(tmp_path: Path):
    checkpoint, out = write_checkpoint(tmp_path), tmp_path / "w.pkl"
    before = converted(checkpoint, "fpn", out).stat()
    assert converted(checkpoint, "fpn", out).stat() == before


@pytest.mark.parametrize("change", ["layout", "content", "record", "list"])
def test_a_file_of_another_making_is_not_overwritten(change: str, tmp_path: Path):
    checkpoint, out = write_checkpoint(tmp_path), tmp_path / "w.pkl"
    converted(checkpoint, "fpn", out)
    if change == "content":
        out.write_bytes(b"mine")
    if change == "record":
        out.with_name("w.pkl.parity.json").unlink()
    if change == "list":
        out.with_name("w.pkl.parity.json").write_text("[]")
    before = out.read_bytes()
    result = convert(checkpoint, "c4" if change == "layout" else "fpn", out)
    assert result.exit_code == 1
    assert "is there already" in result.output
    assert out.read_bytes() == before


def test_a_record_whose_file_is_missing_is_made_good(tmp_path: Path):
    checkpoint, out = write_checkpoint(tmp_path), tmp_path / "w.pkl"
    whole = converted(checkpoint, "fpn", out).read_bytes()
    out.unlink()  # as after a kill between the two
    assert converted(checkpoint, "fpn", out).read_bytes() == whole


def test_what_a_killed_conversion_left_is_gone_after_the_next(tmp_path: Path):
    checkpoint, out = write_checkpoint(tmp_path), tmp_path / "out" / "w.pkl"
    left = out.with_name(".w.pkl.tmp")
    left.mkdir(parents=True)
    (left / "w.pkl").write_bytes(b"half")
    dead = {"attempt": "a", "host": platform.node(), "pid": 2**22 + 1, "born": "0"}
    (left / LOCK_FILE).write_text(json.dumps(dead))
    converted(checkpoint, "fpn", out)
    assert sorted(p.name for p in out.parent.iterdir()) == ["w.pkl", "w.pkl.parity.json"]


def test_two_conversions_do_not_write_one_file_at_once(tmp_path: Path):
    checkpoint, out = write_checkpoint(tmp_path), tmp_path / "w.pkl"
    with _scratch_folder(out) as rivals:
        (rivals / "w.pkl").write_bytes(b"half")
        result = convert(checkpoint, "fpn", out)
        assert (rivals / "w.pkl").exists()
    assert result.exit_code == 1
    assert "is being worked on by pid" in result.output.replace("\n", " ")
    assert not out.exists()


def test_what_a_rival_wrote_a_moment_ago_is_not_overwritten(tmp_path: Path, monkeypatch):
    checkpoint, out = write_checkpoint(tmp_path), tmp_path / "w.pkl"

    @contextlib.contextmanager
    def after_a_rival(final: Path):
        final.write_bytes(b"the rival's")
        with _scratch_folder(final) as scratch:
            yield scratch

    monkeypatch.setattr(convert_module, "_scratch_folder", after_a_rival)
    assert "is there already" in convert(checkpoint, "fpn", out).output
    assert out.read_bytes() == b"the rival's"


def test_a_folder_in_the_place_of_the_record_is_named_before_the_work(tmp_path: Path):
    (tmp_path / "w.pkl.parity.json").mkdir()
    result = convert(write_checkpoint(tmp_path), "fpn", tmp_path / "w.pkl")
    assert result.exit_code == 1
    assert "w.pkl.parity.json is a folder" in result.output.replace("\n", "")


def test_weights_that_fail_the_check_are_not_left_behind(tmp_path: Path, monkeypatch):
    from transfer import parity

    monkeypatch.setattr(parity, "TOLERANCE", -1.0)
    out = tmp_path / "new" / "w.pkl"
    result = convert(write_checkpoint(tmp_path), "fpn", out)
    assert result.exit_code == 1
    assert f"{out}: the fpn trunk" in result.output.replace("\n", "")
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(
    ("layout", "out", "more", "words"),
    [
        ("c4", "w.pkl", ("--format", "pth"), "says pkl but --format says pth"),
        ("c4", "w.pt", (), "no such files are written"),
        ("c4", "w.PKL", (), "no such files are written"),
        ("torchvision", "w.pkl", (), "under torchvision's names"),
        ("torchvision", "out", ("--format", "pkl"), "under torchvision's names"),
        ("c4", "r50.pth/out", (), "is there and no folder"),
        ("c4", "r50.pth", (), "is there already"),
        ("c4", "folder.pkl", (), "is a folder"),
    ],
)
def test_what_cannot_be_asked_for_is_said_in_one_paragraph(layout, out, more, words, tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    (tmp_path / "folder.pkl").mkdir()
    result = convert(checkpoint, layout, tmp_path / out, *more)
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_the_default_format_is_no_other_conversion():
    plain = ConvertConfig(layout="torchvision")
    assert ConvertConfig(layout="torchvision", format="pth") == plain
    assert plain.suffix == ".pth"
    assert departures(ConvertConfig(layout="fpn", format="pkl")) == {"layout": "fpn"}


def test_torchvision_names_are_never_pickled():
    from sslbench.config import build

    with pytest.raises(ConfigError, match="choose pth or safetensors"):
        build(ConvertConfig, {"layout": "torchvision", "format": "pkl"}, where="here")


class Options:
    """A class of the user's own, as trainers put into checkpoints."""


def test_a_pickle_is_opened_only_with_leave(tmp_path: Path):
    network = torch.load(write_checkpoint(tmp_path))["state_dict"]
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": network, "opt": Options()}, path)
    refused = convert(path, "fpn", tmp_path / "w.pkl")
    assert refused.exit_code == 1
    assert "--allow-pickle" in refused.output
    assert not (tmp_path / "w.pkl").exists()
    weights = converted(path, "fpn", tmp_path / "w.pkl", "--allow-pickle")
    state = from_layout(load_weights(weights)[0], "fpn")
    assert np.array_equal(state["conv1.weight"], network["conv1.weight"].numpy())


def test_detectron2_weights_of_others_come_back_too(tmp_path: Path):
    original = load_backbone(write_checkpoint(tmp_path)).state
    model = {
        name.removeprefix("backbone.bottom_up."): value.numpy()
        for name, value in to_layout(original, "fpn").items()
    }
    path = tmp_path / "moco.pkl"
    content = {"model": model, "__author__": "MOCO", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    assert "--allow-pickle" in convert(path, "torchvision", tmp_path / "w.pth").output
    back = converted(path, "torchvision", tmp_path / "w.pth", "--allow-pickle")
    arrays, said = load_weights(back)
    assert said["checkpoint_format"] == "Detectron2"
    assert all(np.array_equal(arrays[name], v.numpy()) for name, v in original.items())


def test_what_must_be_known_of_a_network_is_printed(tmp_path: Path):
    first = converted(write_checkpoint(tmp_path), "fpn", tmp_path / "first.pkl")
    arrays, said = load_weights(first)
    write_weights(tmp_path / "noted.pkl", arrays, said | {"notes": ["pads otherwise"]})
    result = convert(tmp_path / "noted.pkl", "c4", tmp_path / "w.pkl")
    assert "note: pads otherwise\n" in result.output


def test_rescaled_weights_stay_known_as_such_and_are_rescaled_once(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path)
    first = converted(checkpoint, "fpn", tmp_path / "first.pkl", "--rescale", "0.5")
    arrays, said = load_weights(converted(first, "torchvision", tmp_path / "back.safetensors"))
    assert said["rescale"]["constant"] == 0.5
    whole = load_backbone(checkpoint).state["conv1.weight"]
    assert np.array_equal(arrays["conv1.weight"], (whole / 2).numpy())
    again = convert(first, "fpn", tmp_path / "again.pkl", "--rescale", "0.5")
    assert again.exit_code == 1
    assert "were rescaled before" in " ".join(again.output.split())
    assert not (tmp_path / "again.pkl").exists()


def test_leave_to_open_pickles_is_no_part_of_what_was_converted(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path)
    converted(checkpoint, "fpn", tmp_path / "out", "--allow-pickle")
    done = (tmp_path / "out" / "done.json").stat()
    converted(checkpoint, "fpn", tmp_path / "out")
    assert (tmp_path / "out" / "done.json").stat() == done
    assert "allow_pickle" not in (tmp_path / "out" / "stage.json").read_text()


def test_inspect_opens_pickles_with_leave(tmp_path: Path):
    network = torch.load(write_checkpoint(tmp_path))["state_dict"]
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": network, "opt": Options()}, path)
    refused = CliRunner().invoke(app, ["inspect", str(path)])
    assert (refused.exit_code, "--allow-pickle" in refused.output) == (1, True)
    found = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--allow-pickle"]).output)
    assert found["branches"]["online"]["tensors"] == 265


@pytest.mark.parametrize(("layout", "ending"), WAYS)
def test_inspect_describes_weights_of_every_kind(layout: str, ending: str, tmp_path: Path):
    weights = converted(write_checkpoint(tmp_path), layout, tmp_path / f"w.{ending}")
    found = json.loads(CliRunner().invoke(app, ["inspect", str(weights)]).output)
    assert (found["tensors"], found["layout"], found["source"]) == (265, layout, "r50.pth")


def test_torchvisions_names_are_no_weights_for_a_detector(tmp_path: Path, scenes):
    weights = converted(write_checkpoint(tmp_path), "torchvision", tmp_path / "w.pth")
    arguments = ["run", "voc_det_twin", "--weights", weights, "--data", scenes.root, "--out"]
    result = CliRunner().invoke(app, [*map(str, arguments), str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "convert the checkpoint with layout=c4" in " ".join(result.output.split())


def test_the_stage_promises_what_it_writes(tmp_path: Path):
    stage = Convert(ConvertConfig(layout="fpn", format="pth"))
    converted(write_checkpoint(tmp_path), "fpn", tmp_path / "out", "--format", "pth")
    done = json.loads((tmp_path / "out" / "done.json").read_text())
    assert done["artifacts"]["weights"]["path"] == f"weights{stage.config.suffix}"
    assert set(done["artifacts"]) == {"weights", "parity"}
