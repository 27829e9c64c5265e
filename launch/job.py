"""The one callable that runs a stage, anywhere: it knows the stage's folder and nothing else."""

import contextlib
import dataclasses
import datetime
import traceback
from pathlib import Path
from typing import Any

from launch.graph import PlannedStage
from launch.site import SiteConfig
from launch.state import FAILED_FILE, LOG_FILE
from sslbench.catalog import resolve
from sslbench.config import build
from sslbench.datasets import DataRoots
from sslbench.device import prepare_device
from sslbench.files import FileError, disk_errors_named, file_sha256, read_json, write_json
from sslbench.lock import LockedError, live_owner
from sslbench.stage import (
    DONE_FILE,
    STAGE_FILE,
    Stage,
    StageContext,
    StageError,
    artifact_path,
    content_ids,
    fingerprint,
    run_stage,
)


def prepare(planned: PlannedStage, site: SiteConfig, roots: DataRoots) -> "StageJob":
    """Write down in the stage's folder all that running it takes.

    Data roots and site may change between attempts; what the stage is may not.
    """
    require_same(planned)
    if busy := live_owner(planned.dir):
        raise LockedError(f"{planned.dir} is being worked on by {busy}; wait for it or stop it")
    path = planned.dir / STAGE_FILE
    attempts = read_json(path).get("attempts", []) if path.exists() else []
    where = {"roots": roots.to_json(), "site": site.model_dump(mode="json")}
    with disk_errors_named(planned.dir):
        planned.dir.mkdir(parents=True, exist_ok=True)
        write_json(path, {**planned.record(), **where, "attempts": attempts})
    return StageJob(planned.dir)


def require_same(planned: PlannedStage) -> None:
    """Refuse a folder that another config made, finished or not."""
    path = planned.dir / STAGE_FILE
    if not path.exists():
        return
    there = read_json(path)
    expected = planned.record()
    identity = ("kind", "version", "fingerprint", "departures", "upstream", "data")
    differs = [key for key in identity if there.get(key) != expected[key]]
    if differs:
        raise StageError(
            f"{planned.dir} was made by another config: {', '.join(differs)} of its {STAGE_FILE} "
            "differ. Choose another --runs folder, or delete this one to start over"
        )


@dataclasses.dataclass(frozen=True)
class StageJob:
    """Runs, or continues, the stage whose ``stage.json`` lies in ``dir``."""

    dir: Path

    def __call__(self) -> dict[str, str]:
        """Check inputs and data, then run the stage; return artifact -> path relative to ``dir``.

        Raises:
            StageError: an input or a data set is not what was planned.
            LockedError: another process works here.
        """
        (self.dir / FAILED_FILE).unlink(missing_ok=True)
        try:
            return self._run()
        except LockedError:
            raise  # not this stage's failure: its owner is at work
        except Exception as error:
            with contextlib.suppress(OSError, FileError):  # the disk may be full: keep the reason
                self._note(error)
            raise

    def _run(self) -> dict[str, str]:
        record = read_json(self.dir / STAGE_FILE)
        stage = _rebuild(record)
        roots = DataRoots.from_json(record["roots"])
        _require_unchanged(stage, record, roots)
        site = build(SiteConfig, record["site"], f"{self.dir / STAGE_FILE}: site")
        ctx = StageContext(
            dir=self.dir,
            inputs=self._inputs(record),
            data=roots,
            device=prepare_device(site.device, site.threads),
            num_workers=site.num_workers,
            fingerprint=record["fingerprint"],
        )
        return run_stage(stage, ctx, {k: v for k, v in record.items() if k != "attempts"})

    def _inputs(self, record: dict[str, Any]) -> dict[str, Path]:
        runs = self.dir.parent.parent
        return {name: _input_path(runs, item) for name, item in record["inputs"].items()}

    def _note(self, error: Exception) -> None:
        """Keep the reason for ``status`` and the traceback for whoever mends it."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with (self.dir / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(f"{now}  failed\n{''.join(traceback.format_exception(error))}")
        message = str(error) or type(error).__name__
        write_json(self.dir / FAILED_FILE, {"message": message, "finished": now})


def _rebuild(record: dict[str, Any]) -> Stage:
    stage_class = resolve(record["ref"])
    stage: Stage = stage_class(stage_class.config_type.model_validate(record["config"]))
    return stage


def _require_unchanged(stage: Stage, record: dict[str, Any], roots: DataRoots) -> None:
    """Compare what was planned with what lies on disk now: hours may have passed in a queue."""
    contents = content_ids(stage, roots)
    changed = [spec for spec, known in record["data"].items() if contents.get(spec) != known]
    if changed:
        raise StageError(
            f"the data of {', '.join(changed)} under {roots.root} changed since the stage was "
            "planned; run the same command again: it plans a new stage for the new data"
        )
    if fingerprint(stage, record["upstream"], contents) != record["fingerprint"]:
        raise StageError(
            f"{record['kind']} {record['label']}: the code's version or the config in {STAGE_FILE} "
            "changed since the stage was planned; run the same command again"
        )


def _input_path(runs: Path, item: dict[str, str]) -> Path:
    if "stage" in item:
        parent = runs / item["stage"]
        if not (parent / DONE_FILE).exists():
            raise StageError(f"{parent} is not finished; run it first (launch run does)")
        return artifact_path(parent, item["artifact"])
    path = Path(item["file"])
    if not path.exists():
        raise StageError(f"{path} is gone; it was there when the stage was planned")
    if file_sha256(path) != item["sha256"]:
        raise StageError(f"{path} changed since the stage was planned; run the same command again")
    return path
