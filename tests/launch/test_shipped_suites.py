"""The suites in configs/suites, planned with the real stages on the built-in scenes."""

import re
import subprocess
import sys

import pytest

from sslbench.config import CONFIGS_DIR, read_toml

SUITES = CONFIGS_DIR / "suites"
PRELUDE = """
import sys
from launch.__main__ import main
try:
    main()
finally:
    print("torch imported:", "torch" in sys.modules, file=sys.stderr)
"""


def python(*words):
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, cwd=CONFIGS_DIR.parent
    )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    words = ["-m", "sslbench.scenes", "--out", folder, "--train", "12", "--test", "8"]
    done = python(*words)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["demo", "twin", "voc_small"])
def test_a_shipped_suite_is_planned_without_torch(name, scenes, tmp_path):
    done = python("-c", PRELUDE, "plan", name, "--data", scenes, "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "torch imported: False" in done.stderr
    for kind in ("pretrain/cyborgs", "pretrain/random", "convert/c4", "transfer/", "svm/"):
        assert kind in done.stdout


def test_a_pretraining_that_starts_from_a_file_follows_its_bytes(scenes, tmp_path):
    start, found = tmp_path / "start.pth", []
    for content in (b"one", b"two"):
        start.write_bytes(content)
        words = ["plan", "demo", "--data", scenes, "--runs", tmp_path, f"init={start}"]
        done = python("-m", "launch", *words)
        assert done.returncode == 0, done.stderr
        found.append(re.search(r"pretrain/cyborgs-\w+", done.stdout)[0])
    assert found[0] != found[1]
    start.unlink()
    gone = python("-m", "launch", *words)
    assert gone.returncode == 2 and str(start) in gone.stderr


@pytest.fixture
def on_a_checkpoint(tmp_path, scenes):
    """A command of the checkpoint suite; the scenes have no VOC2012, which its detection needs."""
    checkpoint = tmp_path / "mine.pth"
    checkpoint.write_bytes(b"not read while planning")

    def call(command, *more):
        words = [command, "checkpoint", "--data", scenes, "--checkpoint", checkpoint]
        return python("-c", PRELUDE, *words, "--runs", tmp_path / "runs", *more)

    return call


def test_a_task_whose_data_are_there_is_planned_without_the_others(on_a_checkpoint):
    done = on_a_checkpoint("plan", "--only", "svm")
    assert done.returncode == 0, done.stderr
    assert "0 of 1 stages" in done.stdout and "svm/voc07_svm" in done.stdout


def test_a_run_that_lacks_data_starts_nothing_and_names_them(on_a_checkpoint, tmp_path):
    for more in ([], ["--only", "voc0712_det"]):
        done = on_a_checkpoint("run", *more)
        assert done.returncode == 2
        assert "voc2012" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_report_says_which_cells_lack_data(on_a_checkpoint):
    done = on_a_checkpoint("report")
    assert done.returncode == 0, done.stderr
    assert "not planned: mine on voc0712_det: " in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("mine"))
    assert row.count("no data") == 3 and row.count("not run") == 7


@pytest.mark.parametrize("name", ["demo", "twin", "voc_small"])
def test_the_random_control_has_the_trunk_of_the_trained_row(name):
    suite = read_toml(SUITES / f"{name}.toml")
    trained, control = suite["row"]
    trunk = read_toml(SUITES / trained["pretrain"])["arch"]
    assert control["random"] == trunk


@pytest.mark.parametrize("name", ["demo", "twin", "voc_small"])
def test_small_suites_say_that_their_numbers_are_not_for_comparison(name):
    banner = read_toml(SUITES / f"{name}.toml")["banner"]
    assert "not comparable with published numbers" in banner or "mean nothing" in banner
