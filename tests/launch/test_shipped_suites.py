"""The suites in configs/suites, planned with the real stages on the built-in scenes."""

import re
import subprocess
import sys
from collections import Counter

import pytest

from launch.graph import REFS, survey
from launch.suite import load_suite
from sslbench.config import CONFIGS_DIR, read_toml
from sslbench.datasets import DataRoots
from tests.launch.fakes import FAKE_REFS

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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("learns", {"cyborgs": 6, "random": 3}),
        ("learns_96", {"cyborgs": 2}),
        ("learns_parts", {"cyborgs": 6}),
    ],
)
def test_the_learning_checks_have_so_many_backbones(name, expected, scenes, tmp_path):
    done = python("-m", "launch", "plan", name, "--data", scenes, "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    made = re.findall(r"^pretrain/(\w+)-", done.stdout, re.MULTILINE)
    assert Counter(made) == expected


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


@pytest.mark.parametrize(
    "name", ["demo", "learns", "learns_96", "learns_parts", "twin", "voc_small"]
)
def test_small_suites_say_that_their_numbers_are_not_for_comparison(name):
    banner = read_toml(SUITES / f"{name}.toml")["banner"]
    assert "not comparable with published numbers" in banner or "mean nothing" in banner


@pytest.mark.parametrize("name", ["demo", "twin"])
def test_masks_stand_beside_those_of_the_untrained_network(name):
    (task,) = (task for task in load_suite(name).task if task.stage == "mask_quality")
    assert task.set == {"random_network": True}
    assert task.metrics == ("ari_kmeans_*", "ari_random_network", "ari_grid5x5")


@pytest.mark.parametrize("more", [[], ["--checkpoint", "mine.pth"]])
def test_masks_are_measured_of_pretrained_rows_only(more, scenes, tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"not read while planning")
    more = [word.replace("mine.pth", str(tmp_path / "mine.pth")) for word in more]
    done = python("-m", "launch", "plan", "demo", "--data", scenes, "--runs", tmp_path, *more)
    assert done.returncode == 0, done.stderr
    measured = [line for line in done.stdout.splitlines() if "mask_quality/" in line]
    assert len(measured) == (0 if more else 1)
    assert all(line.rstrip().endswith("new    CYBORGS (ours)") for line in measured)


@pytest.fixture
def pretrainings(scenes, tmp_path, monkeypatch):
    """Real pretrainings on the scenes' COCO; fake tasks, for the scenes have no VOC2012."""
    monkeypatch.setattr("launch.graph.REFS", {**FAKE_REFS, "pretrain": REFS["pretrain"]})

    def of(suite):
        tasks = tuple(
            t.model_copy(update={"config": None, "set": {"task": t.id}}) for t in suite.task
        )
        stages, missing = survey(
            suite.model_copy(update={"task": tasks}), DataRoots(scenes, {}), tmp_path
        )
        assert not missing
        return [s for s in stages if s.ref == REFS["pretrain"]]

    return of


def test_the_ablations_have_as_many_cells_as_the_paper():
    cells = Counter(cell.paper for cell in load_suite("ablations").cell)
    sizes = {"a": 6, "b": 2, "c": 5, "d": 4, "e": 4, "f": 2, "g": 5, "h": 5}
    assert cells == {f"Table 2{letter}": size for letter, size in sizes.items()} | {"Fig. 5a": 6}


def test_the_39_cells_of_the_ablations_need_31_pretrainings(pretrainings):
    assert len(pretrainings(load_suite("ablations"))) == 31


def test_the_nine_default_cells_are_the_pretraining_of_table_1(pretrainings):
    (default,) = pretrainings(load_suite("table1"))
    same = next(s for s in pretrainings(load_suite("ablations")) if s.name == default.name)
    rows = {cell.row for cell in same.serves}
    assert len(rows) == 9
    papers = {row.partition("  ")[0] for row in rows}
    assert papers == {"Fig. 5a", *(f"Table 2{letter}" for letter in "abcdefgh")}


def test_the_default_cells_report_the_detection_ap_of_table_1(pretrainings):
    (default,) = pretrainings(load_suite("table1"))
    suite = load_suite("ablations")
    same = next(s for s in pretrainings(suite) if s.name == default.name)
    rows = {cell.row for cell in same.serves if cell.task}
    assert [cell.reported for cell in suite.cell if cell.row in rows] == [58.0] * 8


def test_no_loss_by_period_and_by_weight_are_two_runs(pretrainings):
    stages = pretrainings(load_suite("ablations"))
    rows = [{cell.row for cell in stage.serves} for stage in stages]
    assert {"Table 2g  M = 0"} in rows and {"Table 2h  λ = 0"} in rows


def test_the_ablations_are_planned_without_torch(scenes, tmp_path):
    words = ["plan", "ablations", "--data", scenes, "--runs", tmp_path, "--only", "pretrain"]
    done = python("-c", PRELUDE, *words)
    assert done.returncode == 0, done.stderr
    assert "torch imported: False" in done.stderr
    assert "0 of 31 stages done" in done.stdout


def test_cells_that_lack_the_same_data_are_named_in_one_line(scenes, tmp_path):
    done = python("-m", "launch", "plan", "ablations", "--data", scenes, "--runs", tmp_path)
    lines = [line for line in done.stdout.splitlines() if line.startswith("not planned")]
    assert len(lines) == 1
    assert "Table 2a  N = 0 on voc0712_det, " in lines[0] and " and 27 more: " in lines[0]
    assert "voc2012" in lines[0]
