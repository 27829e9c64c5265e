"""What a reader needs to trust a number, or to repeat it."""

from pathlib import Path
from typing import Any

from launch.graph import PlannedStage
from launch.state import LOG_FILE, clock, failure, read_state
from sslbench.files import read_json
from sslbench.stage import DONE_FILE, STAGE_FILE

VERSIONED = ("python", "torch", "torchvision", "detectron2", "numpy", "scikit-learn", "pycocotools")


def provenance(stage: PlannedStage) -> dict[str, Any]:
    """Gather what a stage's folder says about itself; it may be unfinished or not there yet."""
    record = _read(stage.dir / STAGE_FILE)
    done = _read(stage.dir / DONE_FILE)
    attempts = record.get("attempts", [])
    machine = attempts[-1] if attempts else {}
    log = stage.dir / LOG_FILE
    return {
        "stage": stage.name,
        "state": read_state(stage.dir),
        "failure": failure(stage.dir),
        "version": stage.stage.version,
        "departures": record.get("departures", stage.record()["departures"]),
        "inputs": {name: item.identity for name, item in stage.upstream.items()},
        "data": dict(stage.content_ids),
        "git": machine.get("git", ""),
        "host": machine.get("host", ""),
        "versions": {k: v for k, v in machine.items() if k in VERSIONED},
        "finished": done.get("finished", ""),
        "time": clock(done.get("seconds")),
        "attempts": len(attempts),
        "log": str(log) if log.exists() else "",
    }


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}
