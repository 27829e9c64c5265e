"""Result rows: what an evaluation found, with all it takes to trust it."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import field_validator

from sslbench.config import FrozenConfig, build
from sslbench.files import read_json, write_json

DEPARTS = "departs from "  # begins a footnote that tells how a number leaves its protocol


class Result(FrozenConfig):
    """One number of a table.

    ``value`` is in percent unless ``unit`` says otherwise; ``None`` means "not evaluated", which is
    not zero. ``row`` (the method's name in a table) is filled by whoever knows the suite, not by
    the stage.
    """

    task: str
    metric: str
    value: float | None
    unit: str = "%"
    row: str = ""
    seed: int = 0
    num_images: int = 0
    data_id: str = ""
    task_version: int = 1
    engine: str = ""
    footnotes: tuple[str, ...] = ()
    stage: str = ""

    @field_validator("value", mode="before")
    @classmethod
    def _nan_is_not_evaluated(cls, value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    @property
    def key(self) -> str:
        """``task.metric``, the name used in suites and published tables."""
        return f"{self.task}.{self.metric}"


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write the rows atomically."""
    write_json(path, [json.loads(result.model_dump_json()) for result in results])


def read_results(path: Path) -> list[Result]:
    """Read the rows of one stage."""
    return [build(Result, row, where=str(path)) for row in read_json(path)]


def told_departures(results: Iterable[Result]) -> tuple[str, ...]:
    """What the footnotes of finished numbers say of their protocol, each once."""
    notes = (note for row in results for note in row.footnotes)
    return tuple(dict.fromkeys(note for note in notes if note.startswith(DEPARTS)))


def read_all(root: Path) -> list[Result]:
    """Read the rows of every finished stage below ``root``; a row's ``stage`` names its folder."""
    rows: list[Result] = []
    for marker in sorted(root.glob("**/done.json")):
        path = marker.with_name("results.json")
        if path.exists():
            name = str(path.parent.relative_to(root))
            rows += [row.model_copy(update={"stage": name}) for row in read_results(path)]
    return rows
