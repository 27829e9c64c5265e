"""The report page: one HTML file that needs nothing else, for a laptop, a phone, light or dark."""

import dataclasses
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.graph import PlannedStage
from launch.report.figures import curves, is_wide, picture
from launch.report.provenance import provenance
from launch.report.table import Table
from launch.state import METRICS_FILE
from launch.suite import Suite
from sslbench.log import read_metrics
from sslbench.stage import caption

TEMPLATE = "page.html.j2"
MAX_PICTURES = 24
LOSS_KEYS = ("loss", "contrast", "clustering")
NOT_PANELS = ("step", "epoch", *LOSS_KEYS)


@dataclasses.dataclass(frozen=True)
class Curve:
    """The course of one pretraining run."""

    row: str
    stage: str
    drawings: list[str]


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture that a stage left in its folder."""

    caption: str
    stage: str
    data_url: str
    is_wide: bool  # too wide to be read in one of several columns


def render(suite: Suite, table: Table, stages: Sequence[PlannedStage]) -> str:
    """Fill the template; every name is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    by_name = {stage.name: stage for stage in stages}
    return environment.get_template(TEMPLATE).render(
        table=table,
        trained_rows={row.method for row in suite.row if row.pretrain},
        curves=_curves(stages),
        pictures=_pictures(stages),
        stories=[_story(table, row, task, by_name) for row, task in _pairs(table)],
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _pairs(table: Table) -> list[tuple[str, str]]:
    return [
        (row, task)
        for row in table.rows
        for task, _, columns in table.groups()
        if table.entry(row, columns[0]).stages
    ]


def _story(table: Table, row: str, task: str, by_name: dict[str, PlannedStage]) -> dict[str, Any]:
    """Provenance of one row's numbers on one task: its stages from the source to the result."""
    _, title, columns = next(group for group in table.groups() if group[0] == task)
    entries = [table.entry(row, column) for column in columns]
    chain = _chain(entries[0].stages, by_name)
    return {
        "row": row,
        "task": task,
        "title": title,
        "entries": entries,
        "results": [result for entry in entries for result in entry.results],
        "notes": list(dict.fromkeys(note for entry in entries for note in entry.notes)),
        "stages": [provenance(stage) for stage in chain],
    }


def _chain(names: Sequence[str], by_name: dict[str, PlannedStage]) -> list[PlannedStage]:
    """The stages called ``names`` after all they build on."""
    found: dict[str, PlannedStage] = {}
    for name in names:
        stage = by_name[name]
        found |= {parent.name: parent for parent in _chain(stage.parents, by_name)}
        found[name] = stage
    return list(found.values())


def _curves(stages: Sequence[PlannedStage]) -> list[Curve]:
    """Draw what starts from images: the pretraining runs."""
    return [
        Curve(_rows(stage), stage.name, drawings)
        for stage in stages
        if not stage.upstream and (drawings := _drawings(stage.dir / METRICS_FILE))
    ]


def _drawings(metrics_path: Path) -> list[str]:
    """Draw the loss with its terms, then every other metric by itself."""
    rows = _one_a_step(read_metrics(metrics_path))
    numbers = dict.fromkeys(k for row in rows for k, v in row.items() if isinstance(v, int | float))
    panels = {"loss": [key for key in LOSS_KEYS if key in numbers]}
    others = sorted((k for k in numbers if k not in NOT_PANELS), key=lambda k: k != "lr")
    panels |= {key.replace("_", " "): [key] for key in others}
    return [curves(rows, title, keys) for title, keys in panels.items() if keys]


def _one_a_step(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join rows of one step: a probe's row would break the other curves."""
    joined: dict[int, dict[str, Any]] = {}
    for row in rows:
        joined.setdefault(row["step"], {}).update(row)
    return list(joined.values())


def _rows(stage: PlannedStage) -> str:
    return ", ".join(dict.fromkeys(cell.row for cell in stage.serves))


def _pictures(stages: Sequence[PlannedStage]) -> list[Picture]:
    found = [(stage, path) for stage in stages for path in sorted(stage.dir.glob("*.png"))]
    return [
        Picture(
            caption=f"{_rows(stage)}: {stage.stage.label}, {caption(stage.stage, path.stem)}",
            stage=stage.name,
            data_url=picture(path),
            is_wide=is_wide(path),
        )
        for stage, path in found[:MAX_PICTURES]
    ]
