"""python -m transfer convert FOLDER: every kept checkpoint, in order, whatever one may hold."""

import shutil
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from typer.testing import CliRunner

from sslbench.lock import hold_lock
from sslbench.stage import status
from transfer import convert as convert_module
from transfer.__main__ import app
from transfer.batch import checkpoints_in, convert_each
from transfer.convert import Convert, ConvertConfig, ConvertError
from transfer.weights import load_weights


def convert(folder: Path, out: Path, *more: object):
    arguments = ["convert", folder, "--layout", "fpn", "--out", out, *more]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def make_run(folder: Path, *names: str) -> Path:
    """A run folder that keeps copies of one thin checkpoint."""
    checkpoint = write_checkpoint(folder)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    for name in names:
        shutil.copy(checkpoint, folder / "run" / "checkpoints" / name)
    return folder / "run"


def touch(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).write_text(str(number))


def test_epochs_stand_in_the_order_of_their_numbers(tmp_path: Path):
    touch(tmp_path, "epoch_10.pth", "epoch_9.pth", "epoch_0100.pt", "last.pt", "notes.txt")
    found = [path.name for path in checkpoints_in(tmp_path)]
    assert found == ["epoch_9.pth", "epoch_10.pth", "epoch_0100.pt", "last.pt"]


def test_a_run_folder_means_its_kept_checkpoints(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    touch(tmp_path, "diverged.pt")
    touch(tmp_path / "checkpoints", "epoch_0005.pt", "last.pt", ".last.pt.1-ab.tmp")
    found = [path.name for path in checkpoints_in(tmp_path)]
    assert found == ["epoch_0005.pt", "last.pt"]
    assert [path.name for path in checkpoints_in(tmp_path / "checkpoints")] == found


def test_the_last_epoch_is_not_converted_twice(tmp_path: Path):
    touch(tmp_path, "epoch_0001.pt", "epoch_0002.pt")
    shutil.copy(tmp_path / "epoch_0002.pt", tmp_path / "last.pt")
    assert [path.name for path in checkpoints_in(tmp_path)] == ["epoch_0001.pt", "epoch_0002.pt"]


def test_a_folder_without_checkpoints_is_an_error(tmp_path: Path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ConvertError, match=r"holds no checkpoints \(files that end with \.pt"):
        checkpoints_in(tmp_path)
    assert convert(tmp_path, tmp_path / "out").exit_code == 1


def test_every_epoch_gets_a_folder_and_a_line(tmp_path: Path):
    run, out = make_run(tmp_path, "epoch_0010.pt", "epoch_0009.pt"), tmp_path / "out"
    result = convert(run, out)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["epoch_0009.pt", "converted"],
        ["epoch_0010.pt", "converted"],
    ]
    assert all(status(out / name) == "done" for name in ("epoch_0009", "epoch_0010"))
    assert load_weights(out / "epoch_0009" / "weights.pkl")[1]["source"] == "epoch_0009.pt"


def test_what_is_done_is_not_done_again(tmp_path: Path):
    run, out = make_run(tmp_path, "epoch_0001.pt"), tmp_path / "out"
    convert(run, out)
    before = (out / "epoch_0001" / "weights.pkl").stat()
    result = convert(run, out)
    assert result.output.startswith("epoch_0001.pt  done before")
    assert (out / "epoch_0001" / "weights.pkl").stat() == before


def test_one_bad_file_is_named_and_the_others_are_converted(tmp_path: Path):
    run, out = make_run(tmp_path, "epoch_0001.pt", "epoch_0003.pt"), tmp_path / "out"
    (run / "checkpoints" / "epoch_0002.pt").write_text("cut")
    result = convert(run, out)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[1].startswith("epoch_0002.pt  failed: ")
    assert "is a text file" in lines[1]
    assert lines[2].startswith("epoch_0003.pt  converted")
    assert "1 of 3 checkpoints were not converted" in result.output


def test_a_mended_file_is_converted_the_next_time(tmp_path: Path):
    run, out = make_run(tmp_path, "epoch_0001.pt"), tmp_path / "out"
    bad = run / "checkpoints" / "epoch_0002.pt"
    bad.write_text("cut")
    convert(run, out)
    shutil.copy(run / "checkpoints" / "epoch_0001.pt", bad)
    result = convert(run, out)
    assert result.exit_code == 0
    assert [line.split("  ")[1] for line in result.output.splitlines()] == [
        "done before",
        "converted",
    ]


def test_a_failure_takes_nothing_away_that_was_there(tmp_path: Path):
    run, out = make_run(tmp_path, "epoch_0001.pt"), tmp_path / "out"
    (out / "epoch_0001").mkdir(parents=True)
    (out / "epoch_0001" / "mine.txt").write_text("mine")
    (run / "checkpoints" / "epoch_0001.pt").write_text("cut")
    assert convert(run, out).exit_code == 1
    assert (out / "epoch_0001" / "mine.txt").exists()


def test_a_folder_that_another_process_began_meanwhile_is_left_alone(tmp_path: Path, monkeypatch):
    run, folder = make_run(tmp_path, "epoch_0001.pt"), tmp_path / "out" / "epoch_0001"
    stage, begin = Convert(ConvertConfig(layout="fpn")), convert_module.run_standalone

    def rival_first(*arguments, **named):
        folder.mkdir(parents=True)
        (folder / "weights.pkl").write_text("half of the rival's work")
        with hold_lock(folder):
            return begin(*arguments, **named)

    monkeypatch.setattr(convert_module, "run_standalone", rival_first)
    (done,) = convert_each(stage, checkpoints_in(run), {}, tmp_path / "out")
    assert done.state == "failed"
    assert "is being worked on" in done.reason
    assert (folder / "weights.pkl").exists()


def test_a_folder_that_another_conversion_filled_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch
):
    run, folder = make_run(tmp_path, "epoch_0001.pt"), tmp_path / "out" / "epoch_0001"
    begin = convert_module.run_standalone

    def rival_first(stage, **named):
        begin(Convert(ConvertConfig(layout="torchvision")), **named)
        return begin(stage, **named)

    monkeypatch.setattr(convert_module, "run_standalone", rival_first)
    stage = Convert(ConvertConfig(layout="fpn"))
    (done,) = convert_each(stage, checkpoints_in(run), {}, tmp_path / "out")
    assert "was made by another convert" in done.reason
    assert status(folder) == "done"


def test_a_mended_option_may_name_the_same_folder(tmp_path: Path):
    checkpoint, out = write_checkpoint(tmp_path), tmp_path / "out"
    assert convert(checkpoint, out, "--branch", "nowhere.").exit_code == 1
    assert convert(checkpoint, out).exit_code == 0


def test_names_that_differ_only_in_their_ending_get_folders_of_their_own(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path)
    (tmp_path / "several").mkdir()
    for name in ("a.pth", "a.pt", "b.pth.tar"):
        shutil.copy(checkpoint, tmp_path / "several" / name)
    assert convert(tmp_path / "several", tmp_path / "out").exit_code == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.pth", "a.pt", "b"}


def test_the_format_holds_for_all(tmp_path: Path):
    run = make_run(tmp_path, "epoch_0001.pt")
    convert(run, tmp_path / "out", "--format", "safetensors")
    assert (tmp_path / "out" / "epoch_0001" / "weights.safetensors").exists()


def test_one_anchor_serves_all(tmp_path: Path):
    run, out = make_run(tmp_path, "epoch_0001.pt", "epoch_0002.pt"), tmp_path / "out"
    result = convert(run, out, "--rescale-to", tmp_path / "r50.pth")
    assert result.exit_code == 0, result.output
    for name in ("epoch_0001", "epoch_0002"):
        said = load_weights(out / name / "weights.pkl")[1]
        assert said["rescale"]["anchor"] == "r50.pth"


def test_several_do_not_fit_into_one_file(tmp_path: Path):
    result = convert(make_run(tmp_path, "epoch_0001.pt"), tmp_path / "w.pkl")
    assert result.exit_code == 1
    assert "is one file" in result.output


def test_without_a_place_the_folder_lends_its_name(tmp_path: Path, monkeypatch):
    run = make_run(tmp_path, "epoch_0001.pt")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["convert", str(run), "--layout", "fpn"])
    assert result.exit_code == 0, result.output
    assert Path("runs/convert/run-fpn/epoch_0001/weights.pkl").exists()
