"""A suite file: which rows (backbones) meet which tasks, and how often.

    name = "demo"
    [[row]]
    method = "CYBORGS (ours)"
    pretrain = "../pretrain/demo.toml"      # or checkpoint = "x.pth", or random = { depth = 50 }
    [[task]]
    id = "voc0712_det"
    config = "../transfer/voc_det_tiny.toml"
    metrics = ["AP", "AP50", "AP75"]

Paths in a suite are relative to the suite file.
"""

import difflib
from collections import Counter
from collections.abc import Iterable
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


class Task(FrozenConfig):
    """One evaluation: a stage kind, its config and the metrics that become columns."""

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str = ""
    stage: Literal["detection", "svm", "mask_quality"] = "detection"
    config: Path | None = None  # the stage's defaults where there is none
    # A pattern such as "ari_kmeans_*" takes the last metric (in name order) that matches.
    metrics: tuple[str, ...] = Field(min_length=1)
    set: Changes = {}  # noqa: RUF012


class DataDefaults(FrozenConfig):
    """Where a suite on data of its own finds them; real protocols leave this to the site."""

    root: Path | None = None
    overrides: dict[str, Path] = {}  # noqa: RUF012


class Suite(FrozenConfig):
    """Rows x tasks x seeds."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    title: str = ""
    banner: str = ""  # printed above every table, e.g. why the numbers may not be compared
    row: tuple[Row, ...] = ()
    task: tuple[Task, ...] = Field(min_length=1)
    seeds: int = Field(default=1, gt=0)
    repeat_from: Literal["pretrain", "task"] = "pretrain"  # the first stage that seeds repeat
    data: DataDefaults = DataDefaults()

    @field_validator("row", "task")
    @classmethod
    def _names_differ(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        names = Counter(item.method if isinstance(item, Row) else item.id for item in items)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"{twice[0]!r} is named twice; every row and task needs its own name")
        return items


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
            update={"pretrain": absolute(row.pretrain), "checkpoint": absolute(row.checkpoint)}
        )
        for row in suite.row
    )
    tasks = (task.model_copy(update={"config": absolute(task.config)}) for task in suite.task)
    overrides = {name: absolute(path) for name, path in suite.data.overrides.items()}
    data = suite.data.model_copy(update={"root": absolute(suite.data.root), "overrides": overrides})
    return suite.model_copy(update={"row": tuple(rows), "task": tuple(tasks), "data": data})


def with_checkpoint(suite: Suite, checkpoint: Path | None, branch: str) -> Suite:
    """Put ``checkpoint`` in the place of the suite's own backbones; the random control stays.

    Without a checkpoint the suite stays as it is, but it must have rows.
    """
    if checkpoint is None:
        if not suite.row:
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
    return suite.model_copy(update={"row": (given, *controls)})


def with_overrides(suite: Suite, overrides: Iterable[str]) -> Suite:
    """Lay ``key.sub=value`` items over the pretraining config of every pretrained row."""
    changes: dict[str, Any] = {}
    apply_overrides(changes, overrides)
    if not changes:
        return suite
    if not any(row.pretrain for row in suite.row):
        raise ConfigError(f"no row of suite {suite.name!r} is pretrained: overrides change nothing")
    rows = tuple(
        row.model_copy(update={"set": overlay(row.set, changes)}) if row.pretrain else row
        for row in suite.row
    )
    return suite.model_copy(update={"row": rows})
