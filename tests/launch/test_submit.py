"""Running a suite here: skip, resume, go on after a failure, refuse what does not belong."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from launch.graph import plan
from launch.job import StageJob, prepare
from launch.site import SiteConfig
from launch.state import read_state, read_states
from launch.submit import run_locally
from launch.suite import with_overrides
from sslbench.lock import LockedError
from sslbench.stage import StageError
from tests.launch import fakes

SITE = SiteConfig(device="cpu")


def run(stages, roots):
    said = []
    outcomes = run_locally(stages, SITE, roots, said.append)
    return {o.name: o for o in outcomes}, "\n".join(said)


def endings(outcomes):
    return sorted({o.ending for o in outcomes.values()})


def breaking(suite, task_config, how, suite_path):
    path = suite_path.with_name(task_config)
    path.write_text(path.read_text() + f'\nfail = "{how}"\n')
    return suite


def test_a_second_run_keeps_everything(suite, roots, tmp_path):
    stages = plan(suite, roots, tmp_path / "runs")
    first, _ = run(stages, roots)
    second, said = run(stages, roots)
    assert (endings(first), endings(second)) == (["done"], ["reused"])
    assert all(path.read_text() == "x" for path in tmp_path.rglob("runs.txt"))
    assert said.count("(kept)") == len(stages)


def test_a_stage_reads_what_its_parent_made(suite, roots, tmp_path):
    stages = plan(suite, roots, tmp_path / "runs")
    run(stages, roots)
    convert = next(s for s in stages if s.kind == "convert")
    text = (convert.dir / "weights.pkl").read_text()
    assert text == f"weights after 3 epochs as {convert.stage.config.layout}"


def test_a_failure_stops_only_what_builds_on_it(suite, suite_path, roots, tmp_path):
    suite = with_overrides(suite, ["fail=user"])
    stages = plan(suite, roots, tmp_path / "runs")
    outcomes, said = run(stages, roots)
    assert outcomes[stages[0].name].ending == "failed"
    for stage in stages:
        mine = {c.row for c in stage.serves} == {"Random init."}
        assert outcomes[stage.name].is_good == mine
    assert "image 000005.jpg is truncated" in said and "Traceback" not in said
    assert f"needs {stages[0].name}" in said


def test_the_traceback_of_a_failure_is_in_its_log(suite, roots, tmp_path):
    stages = plan(with_overrides(suite, ["fail=user"]), roots, tmp_path / "runs")
    run(stages, roots)
    assert "Traceback" in (stages[0].dir / "log.txt").read_text()
    state = read_states(stages)[0]
    assert (state.state, state.progress) == (
        "failed",
        "image 000005.jpg is truncated; copy it again",
    )


def test_a_bug_of_ours_shows_its_traceback(suite, suite_path, roots, tmp_path):
    breaking(suite, "svm.toml", "bug", suite_path)
    _, said = run(plan(suite, roots, tmp_path / "runs"), roots)
    assert "Traceback" in said and "a bug of ours" in said


def test_a_run_folder_that_cannot_be_written_is_one_line(suite, roots):
    if not Path("/sys").is_dir():
        pytest.skip("needs /sys, where not even root may make a folder")
    outcomes, said = run(plan(suite, roots, Path("/sys/runs")), roots)
    assert endings(outcomes) == ["failed", "skipped"]
    assert "failed   pretrain/fake" in said and "no access to /sys/runs" in said
    assert "Traceback" not in said


def test_an_interrupted_stage_continues(suite, roots, tmp_path):
    stages = plan(with_overrides(suite, ["fail=interrupt"]), roots, tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        run(stages, roots)
    assert read_state(stages[0].dir) == "interrupted"
    assert read_state(stages[1].dir) == "new"


def test_a_failed_stage_is_tried_again(suite, roots, tmp_path, monkeypatch):
    stages = plan(with_overrides(suite, ["fail=user"]), roots, tmp_path / "runs")
    run(stages, roots)
    monkeypatch.setattr(fakes, "_fail", lambda how: None)
    outcomes, said = run(stages, roots)
    assert endings(outcomes) == ["done", "reused"]
    assert not (stages[0].dir / "failed.json").exists()
    assert "resuming" in said


def test_a_run_folder_of_another_config_is_refused(suite, roots, tmp_path):
    stages = plan(suite, roots, tmp_path / "runs")
    run(stages[:1], roots)
    path = stages[0].dir / "stage.json"
    record = json.loads(path.read_text())
    record["departures"]["epochs"] = 99
    path.write_text(json.dumps(record))
    outcomes, said = run(stages[:1], roots)
    assert outcomes[stages[0].name].ending == "failed"
    assert "made by another config: departures" in said


def test_an_edited_config_is_not_run_under_the_old_name(suite, roots, tmp_path):
    stage = plan(suite, roots, tmp_path / "runs")[0]
    job = prepare(stage, SITE, roots)
    path = stage.dir / "stage.json"
    record = json.loads(path.read_text())
    record["config"]["epochs"] = 99
    path.write_text(json.dumps(record))
    with pytest.raises(StageError, match="changed since the stage was planned"):
        job()


def test_data_that_changed_in_the_queue_are_noticed(suite, roots, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"one picture")
    stage = plan(with_overrides(suite, [f"images={folder}"]), roots, tmp_path / "runs")[0]
    job = prepare(stage, SITE, roots)
    (folder / "a.jpg").write_bytes(b"another picture")
    with pytest.raises(StageError, match="changed since the stage was planned"):
        job()


def test_an_input_that_changed_after_its_stage_is_noticed(suite, roots, tmp_path):
    stages = plan(suite, roots, tmp_path / "runs")
    run(stages[:1], roots)
    (stages[0].dir / "last.pt").write_text("tampered")
    outcomes, said = run(stages[:2], roots)
    assert outcomes[stages[1].name].ending == "failed"
    assert "changed since its stage finished" in said


def test_a_job_whose_parent_is_not_done_says_so(suite, roots, tmp_path):
    stages = plan(suite, roots, tmp_path / "runs")
    with pytest.raises(StageError, match="is not finished"):
        prepare(stages[1], SITE, roots)()


def test_a_job_needs_only_its_folder(suite, roots, tmp_path):
    stages = plan(suite, roots, tmp_path / "runs")
    prepare(stages[0], SITE, roots)
    moved = tmp_path / "moved"
    (tmp_path / "runs").rename(moved)
    made = StageJob(moved / stages[0].name)()
    assert made == {"checkpoint": "last.pt", "masks": "masks"}


def test_a_live_lock_is_refused_with_its_pid(suite, roots, tmp_path):
    stage = plan(suite, roots, tmp_path / "runs")[0]
    prepare(stage, SITE, roots)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        lock(stage.dir, other.pid)
        assert read_state(stage.dir) == "running"
        with pytest.raises(LockedError, match=f"pid {other.pid}"):
            prepare(stage, SITE, roots)
        other.kill()
    assert prepare(stage, SITE, roots)()  # the owner is dead: its lock is taken over


def lock(folder, pid):
    from sslbench.lock import born

    owner = {"attempt": "a", "host": platform.node(), "pid": pid, "born": born(pid)}
    (folder / "lock.json").write_text(json.dumps(owner))


def test_this_process_does_not_leave_its_lock_behind(suite, roots, tmp_path):
    stage = plan(suite, roots, tmp_path / "runs")[0]
    run([stage], roots)
    assert not (stage.dir / "lock.json").exists()


def test_a_stage_refuses_a_folder_of_masks_that_changed_since_it_was_planned(
    suite, roots, tmp_path
):
    store = tmp_path / "masks"
    store.mkdir()
    (store / "labels.bin").write_bytes(b"one")
    changed = with_overrides(suite, [f"store={store}"])
    stage = plan(changed, roots, tmp_path / "runs")[0]
    prepare(stage, SITE, roots)
    (store / "labels.bin").write_bytes(b"two")
    with pytest.raises(StageError, match="masks changed since the stage was planned"):
        StageJob(stage.dir)()
    (store / "labels.bin").write_bytes(b"one")
    assert StageJob(stage.dir)()["checkpoint"] == "last.pt"
