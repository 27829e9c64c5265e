"""Stages: the unit that is skipped, resumed, submitted and reported.

A stage's folder holds ``stage.json`` (written first: what it is), its work, and ``done.json``
(written last: its artifacts with sizes and hashes). ``done.json`` exists <=> complete;
``stage.json`` without it <=> resumable.
"""

import dataclasses
import datetime
import functools
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from sslbench import dist
from sslbench.config import departures
from sslbench.datasets import DataRoots
from sslbench.device import prepare_device
from sslbench.files import (
    atomic_path,
    disk_errors_named,
    file_sha256,
    read_json,
    sweep_scratch,
    write_json,
)
from sslbench.lock import hold_lock

__all__ = ["Stage", "StageContext", "StageError", "atomic_path", "file_sha256", "write_json"]

Status = Literal["new", "resumable", "done"]
STAGE_FILE, DONE_FILE = "stage.json", "done.json"


class StageError(ValueError):
    """A run folder or an input that does not fit the stage asked for."""


@runtime_checkable
class Stage(Protocol):
    """One unit of work. Modules that define stages import no torch at module level.

    ``version`` is bumped when the same config would now give different numbers.
    """

    kind: ClassVar[str]
    version: ClassVar[int]
    config_type: ClassVar[Any]  # a class of FrozenConfig; Any, for a ClassVar is invariant

    @property
    def config(self) -> Any:
        """The frozen config that, with ``version``, decides the result."""

    @property
    def label(self) -> str:
        """Name for people; the prefix of the run folder."""

    def needs(self) -> tuple[str, ...]:
        """Data specs (``voc2007/test``) or image paths that the stage reads."""

    def run(self, ctx: "StageContext") -> dict[str, str]:
        """Do the work in ``ctx.dir``, continuing what is there; return artifact -> path."""


@dataclasses.dataclass(frozen=True)
class StageContext:
    """Where and on what a stage works; nothing here may change its numbers."""

    dir: Path
    inputs: Mapping[str, Path]  # artifact name -> finished file
    data: DataRoots
    device: str = "cpu"
    num_workers: int = 0  # loader processes
    fingerprint: str = ""


def resolved(stage: Any) -> Any:
    """Pin what depends on the machine (``engine = "auto"``), so that a resume cannot switch it."""
    return stage.resolved() if hasattr(stage, "resolved") else stage


def footnotes(stage: Any) -> tuple[str, ...]:
    """What must stand beside every number that builds on the stage; most have nothing to say."""
    return tuple(stage.footnotes()) if hasattr(stage, "footnotes") else ()


def departing(stage: Any) -> tuple[str, ...]:
    """Where a measuring stage's config leaves the published protocol; most name none."""
    return tuple(stage.departures()) if hasattr(stage, "departures") else ()


def caption(stage: Any, picture: str) -> str:
    """What the stage's ``picture.png`` shows; its name where the stage does not say."""
    said: Mapping[str, str] = getattr(stage, "captions", {})
    return said.get(picture, picture.replace("_", " "))


def content_ids(stage: Stage, data: DataRoots) -> dict[str, str]:
    """Content id of each data set read; a path counts by what lies there, not by its name."""
    from sslbench.datasets import content_id, is_data_spec

    return {
        spec if is_data_spec(spec) else f"images{index}": content_id(spec, data)
        for index, spec in enumerate(stage.needs())
    }


def fingerprint(stage: Stage, upstream: Mapping[str, str], contents: Mapping[str, str]) -> str:
    """Hash all that can change the numbers: kind, version, config, inputs, data contents.

    Args:
        upstream: input name -> ``"<fingerprint>/<artifact>"`` of a stage or ``"sha256:..."`` of an
            imported file.
        contents: data spec -> content id.
    """
    identity = {
        "kind": stage.kind,
        "version": stage.version,
        "config": departures(stage.config),
        "upstream": dict(upstream),
        "data": dict(contents),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def status(stage_dir: Path) -> Status:
    """Tell a stage's state from its folder alone."""
    if (stage_dir / DONE_FILE).exists():
        return "done"
    return "resumable" if (stage_dir / STAGE_FILE).exists() else "new"


def artifacts(stage_dir: Path) -> dict[str, str]:
    """Artifact name -> path relative to the folder of a finished stage."""
    done = read_json(stage_dir / DONE_FILE)
    return {name: item["path"] for name, item in done["artifacts"].items()}


def artifact_path(stage_dir: Path, name: str) -> Path:
    """Path of a finished stage's artifact, after checking that its bytes are still the same.

    Raises:
        StageError: the stage is not done, has no such artifact, or the file changed since.
    """
    if status(stage_dir) != "done":
        raise StageError(f"{stage_dir} is not finished; run it first")
    items = read_json(stage_dir / DONE_FILE)["artifacts"]
    if name not in items:
        raise StageError(f"{stage_dir} has no artifact {name!r}; it has {', '.join(items)}")
    path = stage_dir / str(items[name]["path"])
    if not path.exists():
        raise StageError(f"{path} is gone; delete {stage_dir} and run the same command again")
    if file_sha256(path) != items[name]["sha256"]:
        raise StageError(
            f"{path} changed since its stage finished; "
            f"delete {stage_dir} and run the same command again"
        )
    return path


def describe(
    stage: Stage, ref: str, mark: str, upstream: Mapping[str, str], contents: Mapping[str, str]
) -> dict[str, Any]:
    """Build the identity part of ``stage.json``."""
    return {
        "ref": ref,
        "kind": stage.kind,
        "label": stage.label,
        "version": stage.version,
        "fingerprint": mark,
        "config": json.loads(stage.config.model_dump_json()),
        "departures": departures(stage.config),
        "upstream": dict(upstream),
        "data": dict(contents),
        "footnotes": list(footnotes(stage)),
    }


def reference(stage: Stage) -> str:
    """Catalog string of the stage's class."""
    return f"{type(stage).__module__}:{type(stage).__name__}"


def run_stage(stage: Stage, ctx: StageContext, record: Mapping[str, Any]) -> dict[str, str]:
    """Run ``stage`` unless its folder says it is done; return artifact -> relative path.

    Args:
        record: identity for ``stage.json`` as ``describe`` builds it, with anything else worth
            keeping (site, paths).

    Raises:
        StageError: the folder belongs to another stage or config.
        FileError: the disk is full, or the folder must not be written to.
    """
    with disk_errors_named(ctx.dir):
        return _run_in(stage, ctx, record)


def _run_in(stage: Stage, ctx: StageContext, record: Mapping[str, Any]) -> dict[str, str]:
    if not getattr(stage, "parallel", False):
        dist.refuse_several_processes()
    with dist.process_group(ctx.device) as device:
        if status(ctx.dir) == "done":
            _require_same(ctx.dir, record)
            return artifacts(ctx.dir)
        dist.barrier()  # nobody finishes the stage before everybody has looked
        return _run_here(stage, dataclasses.replace(ctx, device=device), record)


def _run_here(stage: Stage, ctx: StageContext, record: Mapping[str, Any]) -> dict[str, str]:
    """Run in this process; the first of several also keeps the folder's records."""
    if not dist.is_main():
        dist.barrier()
        made = stage.run(ctx)
        dist.barrier()
        return made
    ctx.dir.mkdir(parents=True, exist_ok=True)
    with hold_lock(ctx.dir):
        _require_same(ctx.dir, record)
        sweep_scratch(ctx.dir)
        attempts = _count_attempt(ctx.dir, record)
        started = time.time()
        dist.barrier()
        made = stage.run(ctx)
        _finish(ctx.dir, record, made, seconds=time.time() - started, attempts=attempts)
        dist.barrier()
    return made


def _require_same(stage_dir: Path, record: Mapping[str, Any]) -> None:
    path = stage_dir / STAGE_FILE
    if not path.exists():
        if (stage_dir / DONE_FILE).exists():
            raise StageError(f"{stage_dir} has a {DONE_FILE} but no {STAGE_FILE}: not a run folder")
        return
    there = read_json(path)
    if there.get("fingerprint") == record.get("fingerprint"):
        return
    keys = sorted(_differences(there.get("departures", {}), record.get("departures", {})))
    keys += ["version"] if there.get("version") != record.get("version") else []
    before, now = ({k: t.get(k, {}) for k in ("upstream", "data")} for t in (there, record))
    keys += sorted(_differences(before, now))
    raise StageError(
        f"{stage_dir} was made by another {there.get('kind')} (fingerprint "
        f"{there.get('fingerprint')}, now {record.get('fingerprint')}); "
        f"what differs: {', '.join(keys) or 'the kind'}. "
        "Choose another folder, or delete this one to start over"
    )


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two nested tables."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {*old, *new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[prefix + key] = (a, b)
    return found


def _count_attempt(stage_dir: Path, record: Mapping[str, Any]) -> int:
    path = stage_dir / STAGE_FILE
    before = read_json(path).get("attempts", []) if path.exists() else []
    attempts = [*before, {"started": _now(), **machine()}]
    write_json(path, {**record, "attempts": attempts})
    return len(attempts)


def _finish(
    stage_dir: Path, record: Mapping[str, Any], made: Mapping[str, str], **measured: Any
) -> None:
    items = {}
    for name, relative in made.items():
        path = stage_dir / relative
        if not path.exists():
            raise AssertionError(f"the stage promised artifact {name!r} at {path}: not there")
        items[name] = {"path": relative, "bytes": _size(path), "sha256": file_sha256(path)}
    done = {"fingerprint": record.get("fingerprint"), "artifacts": items, "finished": _now()}
    write_json(stage_dir / DONE_FILE, {**done, **measured})


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size


def run_standalone(
    stage: Stage,
    *,
    inputs: Mapping[str, Path],
    data: DataRoots,
    out: Path | None = None,
    runs: Path = Path("runs"),
    device: str = "auto",
    num_workers: int = 0,
) -> tuple[Path, dict[str, str]]:
    """Run one stage by itself on files the user names; return its folder and artifacts.

    Args:
        inputs: input name -> file or folder; hashed, so another one under the same name is
            another run.
        out: the folder; by default ``runs/KIND/LABEL-FINGERPRINT``.
    """
    stage = resolved(stage)
    for name, path in inputs.items():
        if not path.exists():
            raise StageError(f"{name}: {path} does not exist")
    upstream = {name: f"sha256:{file_sha256(path)}" for name, path in inputs.items()}
    contents = content_ids(stage, data)
    mark = fingerprint(stage, upstream, contents)
    stage_dir = out or runs / stage.kind / f"{stage.label}-{mark}"
    ctx = StageContext(stage_dir, dict(inputs), data, prepare_device(device), num_workers, mark)
    record = describe(stage, reference(stage), mark, upstream, contents)
    paths = {"inputs": {name: str(path) for name, path in inputs.items()}, "roots": data.to_json()}
    return stage_dir, run_stage(stage, ctx, {**record, **paths})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Host, versions and git sha: recorded beside every run, never hashed."""
    return {"host": platform.node(), "pid": os.getpid(), "git": git_sha(), **versions()}


@functools.cache
def git_sha() -> str:
    """Commit of the code, ``+changes`` where the tree differs; empty outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        sha = _git(root, "rev-parse", "--short=12", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return sha + ("+changes" if dirty else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on, read without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in (
        "torch",
        "torchvision",
        "detectron2",
        "numpy",
        "scikit-learn",
        "scikit-image",
        "pycocotools",
        "hotcoco",
        "lvis",
        "opencv-contrib-python-headless",
        "scipy",
        "faiss-cpu",
        "faiss-gpu",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
