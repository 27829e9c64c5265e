"""Stages: skip, resume, refuse, and identity by content."""

import errno
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from sslbench.command import errors_in_one_paragraph
from sslbench.config import FrozenConfig
from sslbench.datasets import DataRoots
from sslbench.files import FileError, atomic_path, sweep_scratch, write_array, write_json
from sslbench.lock import LockedError, hold_lock
from sslbench.stage import (
    Stage,
    StageContext,
    StageError,
    artifact_path,
    describe,
    fingerprint,
    run_stage,
    run_standalone,
    status,
)

RUNS: list[str] = []


class EchoConfig(FrozenConfig):
    text: str = "hi"


@dataclass(frozen=True)
class Echo:
    config: EchoConfig
    fail: bool = False
    kind: ClassVar[str] = "echo"
    version: ClassVar[int] = 1
    config_type: ClassVar[type] = EchoConfig
    label: ClassVar[str] = "echo"

    def needs(self):
        return ()

    def run(self, ctx):
        RUNS.append(self.config.text)
        if self.fail:
            raise RuntimeError("killed")
        (ctx.dir / "out.txt").write_text(self.config.text)
        return {"text": "out.txt"}


@pytest.fixture(autouse=True)
def _forget_runs():
    RUNS.clear()


def context(folder):
    return StageContext(folder, {}, DataRoots(folder))


def record(stage):
    return describe(stage, "x:Echo", fingerprint(stage, {}, {}), {}, {})


def run(stage, folder):
    return run_stage(stage, context(folder), record(stage))


def test_the_example_is_a_stage():
    assert isinstance(Echo(EchoConfig()), Stage)


def test_a_second_run_is_skipped(tmp_path):
    echo = Echo(EchoConfig())
    assert run(echo, tmp_path / "s") == run(echo, tmp_path / "s") == {"text": "out.txt"}
    assert RUNS == ["hi"]


def test_a_failed_stage_is_resumable_and_then_done(tmp_path):
    with pytest.raises(RuntimeError):
        run(Echo(EchoConfig(), fail=True), tmp_path / "s")
    assert status(tmp_path / "s") == "resumable"
    run(Echo(EchoConfig()), tmp_path / "s")
    assert status(tmp_path / "s") == "done"
    assert len(json.loads((tmp_path / "s/stage.json").read_text())["attempts"]) == 2


def test_a_folder_of_another_config_is_refused_with_the_key(tmp_path):
    run(Echo(EchoConfig()), tmp_path / "s")
    with pytest.raises(StageError, match="what differs: text"):
        run(Echo(EchoConfig(text="yo")), tmp_path / "s")


def test_several_processes_are_refused_in_one_line(tmp_path, monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"2 processes were started.*without torchrun"):
        run(Echo(EchoConfig()), tmp_path / "s")
    assert status(tmp_path / "s") == "new"


def test_fingerprint_follows_config_version_inputs_and_data():
    class Newer(Echo):
        version: ClassVar[int] = 2

    base = fingerprint(Echo(EchoConfig()), {"a": "1"}, {"d": "1"})
    assert base == fingerprint(Echo(EchoConfig()), {"a": "1"}, {"d": "1"})
    others = [
        fingerprint(Echo(EchoConfig(text="yo")), {"a": "1"}, {"d": "1"}),
        fingerprint(Newer(EchoConfig()), {"a": "1"}, {"d": "1"}),
        fingerprint(Echo(EchoConfig()), {"a": "2"}, {"d": "1"}),
        fingerprint(Echo(EchoConfig()), {"a": "1"}, {"d": "2"}),
    ]
    assert len({base, *others}) == 5


def test_another_file_under_the_same_input_name_is_another_run(tmp_path):
    source = tmp_path / "weights.pth"
    source.write_bytes(b"one")
    arguments = {"inputs": {"checkpoint": source}, "data": DataRoots(tmp_path), "runs": tmp_path}
    first, _ = run_standalone(Echo(EchoConfig()), **arguments)
    source.write_bytes(b"two")
    second, _ = run_standalone(Echo(EchoConfig()), **arguments)
    assert first != second


def test_an_artifact_changed_afterwards_is_not_handed_on(tmp_path):
    run(Echo(EchoConfig()), tmp_path / "s")
    assert artifact_path(tmp_path / "s", "text").read_text() == "hi"
    (tmp_path / "s/out.txt").write_text("edited")
    with pytest.raises(StageError, match=r"out.txt changed since its stage finished"):
        artifact_path(tmp_path / "s", "text")


def test_atomic_path_keeps_the_old_file_when_the_write_fails(tmp_path):
    final = tmp_path / "f"
    final.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(final) as scratch:
        scratch.write_text("half")
        raise ZeroDivisionError
    assert final.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def _write_beyond_the_limit(folder):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        with atomic_path(folder / "big") as scratch:
            scratch.write_bytes(b"x" * 5000)
    except FileError as error:
        os._exit(0 if "nothing half-written was kept" in str(error) else 1)
    os._exit(2)


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path):
    child = multiprocessing.get_context("fork").Process(
        target=_write_beyond_the_limit, args=(tmp_path,)
    )
    child.start()
    child.join()
    assert child.exitcode == 0
    assert list(tmp_path.iterdir()) == []


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@dataclass(frozen=True)
class Refused(Echo):
    """Meets a disk that refuses it outside of an atomic write, as where a log grows."""

    error: OSError = NO_SPACE

    def run(self, ctx):
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NO_SPACE, r"^no room to write .*/s \(No space left on device\).*it continues$"),
        (
            OSError(errno.EROFS, "Read-only file system", "/x/log.txt"),
            r"^no access to /x/log\.txt ",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x/.a.1.tmp"), r"^no access to .*/s "),
    ],
    ids=["full", "read-only", "scratch of an atomic write"],
)
def test_a_disk_that_refuses_a_stage_is_one_sentence_and_the_next_run_finishes_it(
    error, message, tmp_path
):
    with pytest.raises(FileError, match=message):
        run(Refused(EchoConfig(), error=error), tmp_path / "s")
    assert status(tmp_path / "s") == "resumable"
    assert run(Echo(EchoConfig()), tmp_path / "s") == {"text": "out.txt"}


def test_an_error_that_is_not_the_disks_is_not_renamed(tmp_path):
    with pytest.raises(ConnectionResetError):
        run(Refused(EchoConfig(), error=ConnectionResetError(errno.ECONNRESET, "reset")), tmp_path)


def test_a_folder_that_cannot_be_made_is_one_sentence():
    beside = Path("/sys/sslbench")  # not even root may
    if not beside.parent.is_dir():
        pytest.skip("needs /sys")
    with pytest.raises(FileError, match=r"^no access to /sys/sslbench .* choose another folder"):
        run(Echo(EchoConfig()), beside)


def test_commands_end_with_the_disks_error_in_one_paragraph():
    told = pytest.raises(SystemExit, match=r"^error: no room to write .* it continues$")
    with told, errors_in_one_paragraph():
        raise NO_SPACE


@pytest.mark.parametrize("size", [500, 5000])
def test_an_array_that_finds_no_room_says_so(size, tmp_path):
    """numpy writes to a file of its own accord, and loses the system's error."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    array = np.zeros(size, np.int64)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(FileError, match="no room to write"), atomic_path(tmp_path / "a") as to:
            write_array(to, array)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    write_array(tmp_path / "a.npy", array)
    assert (np.load(tmp_path / "a.npy") == array).all()


def test_scratch_of_killed_writers_is_swept(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from sslbench.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1]) / 'f') as s:\n"
        "    s.write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    sweep_scratch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_live_owners_of_a_folder_are_refused(tmp_path):
    refused = pytest.raises(LockedError, match=f"pid {os.getpid()}")
    with hold_lock(tmp_path), refused, hold_lock(tmp_path):
        pass


def test_the_lock_of_a_killed_owner_is_taken_over(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from sslbench.lock import hold_lock\n"
        "with hold_lock(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "lock.json").exists()
    with hold_lock(tmp_path):
        pass
    assert not (tmp_path / "lock.json").exists()


def test_a_lock_from_another_host_says_what_to_do(tmp_path):
    write_json(tmp_path / "lock.json", {"attempt": "a", "host": "elsewhere", "pid": 1, "born": ""})
    with pytest.raises(LockedError, match=r"host elsewhere; .*delete"), hold_lock(tmp_path):
        pass
