"""Where a stage stands, read from its folder alone: done, running, failed, interrupted or new."""

import dataclasses
import datetime
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from launch.graph import PlannedStage
from sslbench.files import read_json
from sslbench.lock import live_owner
from sslbench.stage import DONE_FILE, STAGE_FILE

State = Literal["done", "running", "failed", "interrupted", "new"]
FAILED_FILE, LOG_FILE, METRICS_FILE = "failed.json", "log.txt", "metrics.jsonl"
TAIL_BYTES = 8192


@dataclasses.dataclass(frozen=True)
class StageState:
    """One line of ``launch status``."""

    name: str
    kind: str
    state: State
    progress: str  # newest row of the stage's metrics, or why it failed
    seconds: float | None
    attempts: int
    log: str

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def read_state(stage_dir: Path) -> State:
    """Tell the state; a failure is a note beside the markers, cleared by the next attempt."""
    if (stage_dir / DONE_FILE).exists():
        return "done"
    if live_owner(stage_dir):
        return "running"
    if (stage_dir / FAILED_FILE).exists():
        return "failed"
    return "interrupted" if _attempts(stage_dir) else "new"


def read_states(stages: Iterable[PlannedStage]) -> list[StageState]:
    """Read the line of every stage, in the order of the plan."""
    return [_read_line(stage) for stage in stages]


def _read_line(stage: PlannedStage) -> StageState:
    state = read_state(stage.dir)
    log = stage.dir / LOG_FILE
    return StageState(
        name=stage.name,
        kind=stage.kind,
        state=state,
        progress=_progress(stage.dir, state),
        seconds=_seconds(stage.dir, state),
        attempts=len(_attempts(stage.dir)),
        log=str(log) if log.exists() else "",
    )


def failure(stage_dir: Path) -> str:
    """First line of the message a stage failed with; empty if it did not fail."""
    path = stage_dir / FAILED_FILE
    return str(read_json(path)["message"]).splitlines()[0] if path.exists() else ""


def _attempts(stage_dir: Path) -> list[dict[str, Any]]:
    path = stage_dir / STAGE_FILE
    return list(read_json(path).get("attempts", [])) if path.exists() else []


def _progress(stage_dir: Path, state: State) -> str:
    if state == "failed":
        return failure(stage_dir)
    if state in ("done", "new"):
        return ""
    row = _last_row(stage_dir / METRICS_FILE)
    return "  ".join(f"{key} {value:.4g}" for key, value in list(row.items())[:4])


def _last_row(path: Path) -> dict[str, float]:
    """Newest complete row of a metrics file, without reading all of a long one."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")[:-1]  # the last may be cut short
    try:
        row = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        return {}
    return {k: v for k, v in row.items() if isinstance(v, int | float)}


def _seconds(stage_dir: Path, state: State) -> float | None:
    if state == "done":
        seconds = read_json(stage_dir / DONE_FILE).get("seconds")
        return None if seconds is None else float(seconds)
    attempts = _attempts(stage_dir)
    if state != "running" or not attempts:
        return None
    return time.time() - datetime.datetime.fromisoformat(attempts[-1]["started"]).timestamp()


def clock(seconds: float | None) -> str:
    """Write a duration for people: ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
