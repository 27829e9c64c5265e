"""A suite file: which rows (backbones) meet which tasks, and how often.

    name = "demo"
    [[row]]
    method = "CYBORGS (ours)"
    pretrain = "../pretrain/demo.toml"      # or checkpoint = "x.pth", or random = { depth = 50 }
    [[task]]
    id = "voc0712_det"
    config = "../transfer/voc_det_tiny.toml"
    metrics = ["AP", "AP50", "AP75"]

A table of ablations names single places instead, each a change of one pretraining:

    base = "../pretrain/cyborgs.toml"
    [[cell]]
    paper = "Table 2a"
    label = "N = 10"
    task = "voc0712_det"                    # without a task it is only pretrained
    set = { "method.refresh_masks_every" = 10 }
    reported = 52.6

Paths in a suite are relative to the suite file.
"""

import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from sslbench.config import (
    CONFIGS_DIR,
    ConfigError,
    FrozenConfig,
    apply_overrides,
    assign,
    load,
    overlay,
)

SUITES_DIR = CONFIGS_DIR / "suites"
SOURCES = ("pretrain", "checkpoint", "random")


def _nested(table: dict[str, Any]) -> dict[str, Any]:
    """Expand dotted keys: ``{"a.b": 1}`` becomes ``{"a": {"b": 1}}``."""
    out: dict[str, Any] = {}
    for key, value in table.items():
        assign(out, key, value)
    return out


Changes = Annotated[dict[str, Any], AfterValidator(_nested)]


class Row(FrozenConfig):
    """One backbone, from exactly one of ``pretrain``, ``checkpoint`` and ``random``."""

    method: str = Field(min_length=1)
    pretrain: Path | None = None  # a pretraining config
    checkpoint: Path | None = None  # a file of any known format
    random: dict[str, Any] | None = None  # the keys of RandomInitConfig: the control row
    branch: str = Field(default="online", min_length=1)  # online, target, or a prefix of its keys
    rescale: float | None = Field(default=None, gt=0)  # factor of its weight norms for a detector
    rescale_to: Path | None = None  # checkpoint whose weight norms a detector gets
    anchor_branch: str = Field(default="online", min_length=1)  # of rescale_to
    set: Changes = {}  # noqa: RUF012 (frozen, pydantic copies it)

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"row {self.method!r} needs exactly one of {', '.join(SOURCES)}; "
                f"it has {' and '.join(given) or 'none'}"
            )
        if self.set and self.pretrain is None:
            raise ValueError(f"row {self.method!r}: 'set' changes a pretraining config only")
        return self

    @model_validator(mode="after")
    def _names_the_branch_of_an_anchor(self) -> Self:
        if self.rescale_to is None and "anchor_branch" in self.model_fields_set:
            raise ValueError(
                f"row {self.method!r}: 'anchor_branch' is a branch of 'rescale_to': name that file"
            )
        return self


class Task(FrozenConfig):
    """One evaluation: a stage kind, its config and the metrics that become columns."""

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str = ""
    stage: Literal["detection", "svm", "mask_quality"] = "detection"
    config: Path | None = None  # the stage's defaults where there is none
    # A pattern such as "ari_kmeans_*" takes the last metric (in name order) that matches.
    metrics: tuple[str, ...] = Field(min_length=1)
    set: Changes = {}  # noqa: RUF012


class TableCell(FrozenConfig):
    """One place of a published table: the suite's ``base``, changed, and measured by one task."""

    paper: str = Field(min_length=1)  # "Table 2a"
    label: str = Field(min_length=1)  # what is changed, as the paper prints it
    task: str = ""  # id of a task of the suite; without one the cell is only pretrained
    set: Changes = {}  # noqa: RUF012
    reported: float | None = None  # published value of the task's first metric

    @property
    def row(self) -> str:
        """Name of its row in our table; cells of one row differ in their tasks."""
        return f"{self.paper}  {self.label}"

    @property
    def place(self) -> str:
        """Name for people."""
        return f"{self.row!r} on {self.task}" if self.task else repr(self.row)

    @model_validator(mode="after")
    def _reports_a_task(self) -> Self:
        if self.reported is not None and not self.task:
            raise ValueError(
                f"cell {self.place}: 'reported' is a task's value: name the task, or drop it"
            )
        return self


class DataDefaults(FrozenConfig):
    """Where a suite on data of its own finds them; real protocols leave this to the site."""

    root: Path | None = None
    overrides: dict[str, Path] = {}  # noqa: RUF012


@dataclass(frozen=True)
class Line:
    """A backbone with the tasks that it meets: a row with all, a cell's with one or none."""

    row: Row
    tasks: tuple[Task, ...]
    cell: TableCell | None = None


class Suite(FrozenConfig):
    """(Rows x tasks + cells) x seeds."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    title: str = ""
    banner: str = ""  # printed above every table, e.g. why the numbers may not be compared
    row: tuple[Row, ...] = ()
    task: tuple[Task, ...] = Field(min_length=1)
    base: Path | None = None  # the pretraining config that the cells change
    base_set: Changes = {}  # noqa: RUF012 (changes below those of the cells)
    cell: tuple[TableCell, ...] = ()
    seeds: int = Field(default=1, gt=0)
    repeat_from: Literal["pretrain", "task"] = "pretrain"  # the first stage that seeds repeat
    strict: bool = False  # refuse to run tasks that depart from their published protocols
    data: DataDefaults = DataDefaults()

    @field_validator("row", "task")
    @classmethod
    def _names_differ(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        names = Counter(item.method if isinstance(item, Row) else item.id for item in items)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"{twice[0]!r} is named twice; every row and task needs its own name")
        return items

    @model_validator(mode="after")
    def _cells_have_a_base(self) -> Self:
        if self.cell and self.base is None:
            raise ValueError(
                f"cell {self.cell[0].place} changes a pretraining config: name it, base = PATH"
            )
        if not self.cell and (self.base or self.base_set):
            raise ValueError("'base' and 'base_set' are what cells change: add a [[cell]]")
        return self

    @model_validator(mode="after")
    def _cells_have_places(self) -> Self:
        tasks, methods = [task.id for task in self.task], {row.method for row in self.row}
        seen: set[str] = set()
        for cell in self.cell:
            if cell.task and cell.task not in tasks:
                near = difflib.get_close_matches(cell.task, tasks, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(tasks)}"
                raise ValueError(f"cell {cell.place}: the suite has no such task; {hint}")
            if cell.place in seen:
                raise ValueError(f"cell {cell.place} is written twice; drop one")
            if cell.row in methods:
                raise ValueError(f"{cell.row!r} names a row and a cell; rename one")
            seen.add(cell.place)
        return self

    @property
    def base_row(self) -> Row:
        """What the cells change, as a row of its own."""
        return Row(method="base", pretrain=self.base, set=self.base_set)

    @property
    def lines(self) -> tuple[Line, ...]:
        """Rows, then cells; the cells of one published table stand together."""
        papers = list(dict.fromkeys(cell.paper for cell in self.cell))
        cells = sorted(self.cell, key=lambda cell: papers.index(cell.paper))
        return (*(Line(row, self.task) for row in self.row), *(self._line(cell) for cell in cells))

    def _line(self, cell: TableCell) -> Line:
        changes = overlay(self.base_set, cell.set)
        row = Row(method=cell.row, pretrain=self.base, set=changes)
        return Line(row, tuple(task for task in self.task if task.id == cell.task), cell)


def find_suite(name_or_path: str) -> Path:
    """Return the suite file: a path, or the name of one in ``configs/suites``."""
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.exists():
        return path
    found = SUITES_DIR / f"{name_or_path}.toml"
    if not found.exists():
        known = sorted(p.stem for p in SUITES_DIR.glob("*.toml"))
        near = difflib.get_close_matches(name_or_path, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"there is no suite {name_or_path!r}; {hint} (or give a path to a .toml)")
    return found


def load_suite(name_or_path: str) -> Suite:
    """Read a suite; its paths become absolute."""
    path = find_suite(name_or_path)
    return _anchored(load(Suite, path), path.resolve().parent)


def _anchored(suite: Suite, folder: Path) -> Suite:
    def absolute(path: Path | None) -> Path | None:
        return None if path is None else (folder / path.expanduser()).resolve()

    rows = (
        row.model_copy(
            update={
                name: absolute(getattr(row, name))
                for name in ("pretrain", "checkpoint", "rescale_to")
            }
        )
        for row in suite.row
    )
    tasks = (task.model_copy(update={"config": absolute(task.config)}) for task in suite.task)
    overrides = {name: absolute(path) for name, path in suite.data.overrides.items()}
    data = suite.data.model_copy(update={"root": absolute(suite.data.root), "overrides": overrides})
    return suite.model_copy(
        update={
            "row": tuple(rows),
            "task": tuple(tasks),
            "base": absolute(suite.base),
            "data": data,
        }
    )


def with_checkpoint(suite: Suite, checkpoint: Path | None, branch: str) -> Suite:
    """Put ``checkpoint`` in the place of the suite's own backbones; the random control stays.

    Without a checkpoint the suite stays as it is, but it must have rows or cells.
    """
    if checkpoint is None:
        if not suite.lines:
            raise ConfigError(
                f"suite {suite.name!r} evaluates a checkpoint of yours: "
                "give --checkpoint PATH (make: CKPT=PATH)"
            )
        return suite
    given = Row.model_validate(
        {
            "method": checkpoint.stem,
            "checkpoint": checkpoint.expanduser().resolve(),
            "branch": branch,
        }
    )
    controls = tuple(row for row in suite.row if row.random is not None)
    return suite.model_copy(
        update={"row": (given, *controls), "base": None, "base_set": {}, "cell": ()}
    )


def with_overrides(suite: Suite, overrides: Iterable[str]) -> Suite:
    """Lay ``key.sub=value`` items over the pretraining config of every pretrained row.

    They also change the base of the cells; a key that a cell sets itself stays as the cell says.
    """
    changes: dict[str, Any] = {}
    apply_overrides(changes, overrides)
    if not changes:
        return suite
    if not any(line.row.pretrain for line in suite.lines):
        raise ConfigError(f"no row of suite {suite.name!r} is pretrained: overrides change nothing")
    rows = tuple(
        row.model_copy(update={"set": overlay(row.set, changes)}) if row.pretrain else row
        for row in suite.row
    )
    base_set = overlay(suite.base_set, changes) if suite.cell else {}
    return suite.model_copy(update={"row": rows, "base_set": base_set})
