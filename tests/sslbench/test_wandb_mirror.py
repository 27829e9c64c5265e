"""Weights & Biases beside the log: asked for by the environment, and never in the way."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sslbench.log import RunLog, read_metrics
from sslbench.wandb_mirror import VARIABLE, WandbError, run_id


class FakeWandb:
    """A wandb that keeps what it is told; the call named ``broken`` fails."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.runs, self.rows, self.axes, self.ends = broken, [], [], [], []

    def init(self, **settings):
        self._reach("init")
        self.runs.append(settings)
        return SimpleNamespace(log=self.log, finish=self.finish, define_metric=self.define_metric)

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, row):
        self._reach("log")
        self.rows.append(row)

    def finish(self, exit_code):
        self._reach("finish")
        self.ends.append(exit_code)

    def _reach(self, call: str) -> None:
        if call == self.broken:
            raise ConnectionError("api.wandb.ai cannot be reached\nTraceback of its own")


@pytest.fixture
def install(monkeypatch):
    """Ask for W&B, and put a fake in its place."""

    def ask(**settings) -> FakeWandb:
        fake = FakeWandb(**settings)
        monkeypatch.setenv(VARIABLE, "sketches")
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    return ask


def write(folder: Path, *steps: int, rewind: int | None = None) -> None:
    folder.mkdir(exist_ok=True)
    with RunLog(folder) as log:
        if rewind is not None:
            log.rewind(rewind)
        for step in steps:
            log.scalars(step, loss=float(step))


def test_rows_go_to_the_project_under_the_folders_name(install, tmp_path):
    fake = install()
    write(tmp_path / "run", 0, 1)
    (settings,) = fake.runs
    assert (settings["project"], settings["name"]) == ("sketches", "run")
    assert settings["dir"] == str(tmp_path / "run")
    assert fake.rows == [{"step": 0, "loss": 0.0}, {"step": 1, "loss": 1.0}]
    assert fake.ends == [0]


def test_without_the_variable_wandb_is_not_touched(install, monkeypatch, tmp_path):
    fake = install()
    monkeypatch.setenv(VARIABLE, " ")
    write(tmp_path / "run", 0)
    monkeypatch.delenv(VARIABLE)
    write(tmp_path / "run", 1)
    assert fake.runs == []


def test_a_resume_continues_the_same_run_and_may_repeat_steps(install, tmp_path):
    fake = install()
    write(tmp_path / "run", 0, 1, 2)
    write(tmp_path / "run", 1, 2, rewind=1)
    first, second = fake.runs
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert fake.axes == [("*", "step")] * 2  # not W&B's own counter, which cannot go back
    assert [row["step"] for row in fake.rows] == [0, 1, 2, 1, 2]


def test_folders_of_one_name_are_different_runs(tmp_path):
    ids = {run_id(tmp_path / parent / "run: 1") for parent in "ab"}
    assert len(ids) == 2
    assert all(name.startswith("run--1-") for name in ids)


def test_a_log_without_rows_starts_no_run(install, tmp_path):
    fake = install()
    write(tmp_path / "run")
    assert fake.runs == fake.ends == []


def test_a_run_that_fails_is_marked_as_failed(install, tmp_path):
    fake = install()
    with pytest.raises(KeyError), RunLog(tmp_path) as log:
        log.scalars(0, loss=1.0)
        raise KeyError
    assert fake.ends == [1]


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_service_that_fails_is_said_once_and_ends_nothing(broken, install, tmp_path):
    fake = install(broken=broken)
    write(tmp_path / "run", 0, 1, 2)
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 3
    said = (tmp_path / "run/log.txt").read_text()
    assert said.count("Weights & Biases failed") == 1
    assert "api.wandb.ai cannot be reached" in said and "Traceback" not in said
    assert len(fake.rows) == (3 if broken == "finish" else 0)


def test_a_missing_package_is_an_error_that_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, "sketches")
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises ImportError
    with pytest.raises(WandbError, match=r"sketches asks for.*-m pip install wandb"):
        RunLog(tmp_path)


def test_only_the_first_process_sends(install, monkeypatch, tmp_path):
    fake = install()
    monkeypatch.setattr("sslbench.dist.is_main", lambda: False)
    write(tmp_path / "run", 0)
    assert fake.runs == []
