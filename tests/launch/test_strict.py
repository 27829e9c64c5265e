"""A strict suite refuses tasks that leave their protocols, all at once and before anything runs."""

import subprocess
import sys

import pytest

from launch.graph import plan, require_protocols
from launch.report.table import build_table
from launch.site import SiteConfig
from launch.submit import run_locally
from launch.suite import load_suite
from sslbench.config import CONFIGS_DIR, ConfigError
from sslbench.results import read_results, write_results
from tests.launch.test_cli import PRELUDE

FEW = "one run; published numbers are the mean of 3"


def change(suite_path, task, line):
    path = suite_path.with_name(f"{task}.toml")
    path.write_text(f"{path.read_text()}\n{line}")


@pytest.fixture
def departing(suite_path):
    change(suite_path, "voc_det", 'departs = ["schedule: 9"]')
    change(suite_path, "coco_fpn", 'departs = ["data: mine"]')
    return suite_path


def test_every_departure_of_every_task_is_listed(departing, roots, tmp_path):
    stages = plan(load_suite(str(departing)), roots, tmp_path)
    with pytest.raises(ConfigError) as caught:
        require_protocols(stages)
    said = str(caught.value)
    assert said.count("departs from the fake in schedule: 9") == 2  # of either row
    assert said.count("departs from the fake in data: mine") == 2
    assert "transfer/voc_det-" in said and "run without --strict" in said


def test_stages_without_departures_pass(suite, roots, tmp_path):
    require_protocols(plan(suite, roots, tmp_path))


def test_finished_numbers_are_held_to_what_their_footnotes_say(suite, roots, tmp_path):
    stages = plan(suite, roots, tmp_path)
    run_locally(stages, SiteConfig(device="cpu"), roots, lambda text: None)
    require_protocols(stages)
    path = next(stage.dir for stage in stages if "voc_det" in stage.name) / "results.json"
    note = "departs from the fake in content of the data: 9 of 4952 images"
    rows = [row.model_copy(update={"footnotes": (note,)}) for row in read_results(path)]
    write_results(path, rows)
    with pytest.raises(ConfigError, match=f"transfer/voc_det-.*{note}"):
        require_protocols(stages)


def test_a_strict_suite_hands_its_demand_to_the_tasks(suite, roots, tmp_path):
    strict = suite.model_copy(update={"strict": True})
    named = {stage.name: stage.stage.config for stage in plan(strict, roots, tmp_path)}
    assert [stage.name for stage in plan(suite, roots, tmp_path)] == list(named)
    assert all(config.strict for name, config in named.items() if name.startswith("transfer/"))


@pytest.mark.slow
@pytest.mark.parametrize(("command", "how"), [("run", "option"), ("plan", "suite")])
def test_the_command_ends_before_anything_runs(departing, tmp_path, how, command):
    words = [command, str(departing), "--runs", str(tmp_path / "runs")]
    if how == "option":
        words.append("--strict")
    else:
        departing.write_text(f"strict = true\n{departing.read_text()}")
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE, *words],
        cwd=CONFIGS_DIR.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "the suite is strict" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_fewer_runs_than_published_numbers_average_are_noted(suite_path, roots, tmp_path):
    change(suite_path, "voc_det", "published_runs = 3")
    suite = load_suite(str(suite_path))
    stages = plan(suite, roots, tmp_path)
    run_locally(stages, SiteConfig(device="cpu"), roots, lambda text: None)
    table = build_table(suite, stages)
    noted = {c.task for c in table.columns if FEW in table.entry("Random init.", c).notes}
    assert noted == {"voc_det"}
    assert any(FEW in footnote for footnote in table.footnotes)


def test_as_many_runs_as_published_need_no_note(suite_path, roots, tmp_path):
    change(suite_path, "voc_det", "published_runs = 3")
    suite = load_suite(str(suite_path)).model_copy(update={"seeds": 3, "repeat_from": "task"})
    stages = plan(suite, roots, tmp_path)
    run_locally(stages, SiteConfig(device="cpu"), roots, lambda text: None)
    table = build_table(suite, stages)
    assert not any("published numbers" in footnote for footnote in table.footnotes)
