"""The commands as a user types them, in a process of their own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sslbench.config import CONFIGS_DIR

ROOT = CONFIGS_DIR.parent
PRELUDE = """
import sys
from launch import graph
from launch.__main__ import main
from tests.launch.fakes import FAKE_REFS
graph.REFS = FAKE_REFS
try:
    main()
finally:
    print("torch imported:", "torch" in sys.modules, file=sys.stderr)
"""


class Launch:
    """Calls the command line with the fakes in the place of the real stages."""

    def __init__(self, suite_path, runs):
        self.suite_path, self.runs = suite_path, runs

    def start(self, command, *arguments, env=None):
        words = [command, str(self.suite_path), *arguments, "--runs", str(self.runs)]
        return subprocess.Popen(
            [sys.executable, "-c", PRELUDE, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | (env or {}),
            # a shell that runs the tests in the background passes on an ignored SIGINT
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def __call__(self, command, *arguments):
        child = self.start(command, *arguments)
        out, err = child.communicate()
        return subprocess.CompletedProcess(child.args, child.returncode, out, err)


@pytest.fixture
def launch(suite_path, tmp_path):
    return Launch(suite_path, tmp_path / "runs")


@pytest.mark.parametrize("command", ["plan", "status"])
def test_planning_imports_no_torch_and_takes_a_moment(launch, command):
    started = time.monotonic()
    done = launch(command)
    assert done.returncode == 0, done.stderr
    assert "torch imported: False" in done.stderr
    assert time.monotonic() - started < 10  # 0.5 s alone; the test machine may be busy


def test_plan_shows_a_tree_with_states(launch):
    lines = launch("plan").stdout.splitlines()
    assert lines[1].startswith("pretrain/fake-") and "new" in lines[1]
    assert lines[2].startswith("├─ convert/c4-")
    assert lines[3].startswith("│  └─ transfer/voc_det-")


def test_run_then_status_then_run_again(launch):
    assert launch("run", "--only", "voc_det").returncode == 0
    states = json.loads(launch("status", "--json").stdout)
    assert {s["state"] for s in states} == {"done", "new"}
    assert next(s for s in states if s["kind"] == "pretrain")["attempts"] == 1
    again = launch("run", "--only", "voc_det")
    assert again.returncode == 0 and again.stdout.count("(kept)") == 6


def test_a_failed_run_exits_with_one_and_says_what_to_do(launch):
    done = launch("run", "fail=user")
    assert done.returncode == 1
    assert "image 000005.jpg is truncated" in done.stdout
    assert "run the same command" in done.stdout


def test_ctrl_c_exits_with_130_and_promises_to_continue(launch):
    done = launch("run", "fail=interrupt")
    assert done.returncode == 130
    assert "run the same command to continue" in done.stdout


@pytest.mark.parametrize(
    ("signal_number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]
)
def test_a_stopped_run_continues_with_the_same_command(launch, tmp_path, signal_number, code):
    child = launch.start("run", "--only", "pretrain", env={"FAKE_HANG": "1"})
    wait_for(lambda: list(tmp_path.glob("runs/pretrain/*/started")))
    child.send_signal(signal_number)
    said = child.communicate(timeout=30)[0]
    assert child.returncode == code
    assert ("run the same command" in said) == (signal_number == signal.SIGINT)
    states = json.loads(launch("status", "--json").stdout)
    assert states[0]["state"] == "interrupted"
    again = launch("run", "--only", "pretrain")
    assert again.returncode == 0 and "resuming pretrain/fake-" in again.stdout


def test_a_second_command_on_the_same_runs_is_refused_with_the_pid(launch, tmp_path):
    child = launch.start("run", "--only", "pretrain", env={"FAKE_HANG": "1"})
    wait_for(lambda: list(tmp_path.glob("runs/pretrain/*/started")))
    second = launch("run", "--only", "pretrain")
    child.kill()
    child.wait()
    assert second.returncode == 1
    assert f"being worked on by pid {child.pid}" in second.stdout


def wait_for(happened, seconds=60.0):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["epoch=3"], "did you mean 'epochs'"),
        (["--only", "voc_dat"], "did you mean 'voc_det'"),
        (["--checkpoint", "/nowhere.pth"], "no checkpoint file /nowhere.pth"),
        (["--site", "/nowhere.toml"], "/nowhere.toml: no such config file"),
        (["images=/nowhere"], "/nowhere"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(launch, arguments, answer):
    done = launch("run", *arguments)
    assert done.returncode == 2
    assert answer in done.stderr and "Traceback" not in done.stderr
