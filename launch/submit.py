"""The local runner: stages in order, in this process.

Done stages are kept, interrupted ones continue.
"""

import dataclasses
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Literal

from launch.graph import PlannedStage
from launch.job import prepare, require_same
from launch.site import SiteConfig
from launch.state import LOG_FILE, clock, read_state
from sslbench.datasets import DataRoots

Ending = Literal["reused", "done", "failed", "skipped"]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one stage ended in this call."""

    name: str
    ending: Ending
    message: str = ""

    @property
    def is_good(self) -> bool:
        return self.ending in ("reused", "done")


def run_locally(
    stages: Sequence[PlannedStage],
    site: SiteConfig,
    roots: DataRoots,
    say: Say,
    *,
    debug: bool = False,
) -> list[Outcome]:
    """Run ``stages`` (parents first); a failure stops only what builds on it.

    Args:
        debug: also show the traceback of errors that the user can mend.
    """
    outcomes: dict[str, Outcome] = {}
    for number, stage in enumerate(stages, start=1):
        blocked = [p for p in stage.parents if p in outcomes and not outcomes[p].is_good]
        place = f"[{number}/{len(stages)}]"
        if blocked:
            outcome = Outcome(stage.name, "skipped", f"needs {blocked[0]}")
            say(f"{place} skipped  {stage.name}: needs {blocked[0]}, which is not done")
        else:
            outcome = _run_one(stage, site, roots, place, say, debug=debug)
        outcomes[stage.name] = outcome
    return list(outcomes.values())


def _run_one(
    stage: PlannedStage, site: SiteConfig, roots: DataRoots, place: str, say: Say, *, debug: bool
) -> Outcome:
    state = read_state(stage.dir)
    try:
        if state == "done":
            require_same(stage)
            say(f"{place} done     {stage.name} (kept)")
            return Outcome(stage.name, "reused")
        say(f"{place} {'running' if state == 'new' else 'resuming':8} {stage.name}")
        started = time.monotonic()
        prepare(stage, site, roots)()
    except Exception as error:
        return _failed(stage, error, place, say, debug=debug)
    say(f"{place} done     {stage.name} in {clock(time.monotonic() - started)}")
    return Outcome(stage.name, "done")


def _failed(stage: PlannedStage, error: Exception, place: str, say: Say, *, debug: bool) -> Outcome:
    message = str(error) or type(error).__name__
    if debug or not isinstance(error, ValueError):  # a ValueError speaks to the user: enough said
        say("".join(traceback.format_exception(error)).rstrip())
    log = stage.dir / LOG_FILE
    where = f"\n      log: {log}" if log.exists() else ""
    say(f"{place} failed   {stage.name}: {message}{where}")
    return Outcome(stage.name, "failed", message)
