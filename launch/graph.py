"""Suite -> the stages it needs, each once, parents first: a pure function of files on disk.

pretrain | random init | imported checkpoint -> convert (per layout) -> detection
                                             -> SVM, mask quality
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launch.suite import Line, Row, Suite, Task
from sslbench.catalog import resolve
from sslbench.config import ConfigError, build, overlay, read_toml
from sslbench.datasets import DataError, DataRoots
from sslbench.files import file_sha256
from sslbench.results import read_results, told_departures
from sslbench.stage import Stage, content_ids, departing, describe, fingerprint, resolved, status

REFS = {
    "pretrain": "pretrain.stage:Pretrain",
    "random": "pretrain.stage:RandomInit",
    "mask_quality": "pretrain.stage:MaskQuality",
    "convert": "transfer.convert:Convert",
    "detection": "transfer.detection:Detection",
    "svm": "eval_svm.stage:VOC07SVM",
}


@dataclasses.dataclass(frozen=True)
class FromStage:
    """An input made by another stage; ``name`` is its folder, relative to the run folder."""

    name: str
    fingerprint: str
    artifact: str

    @property
    def identity(self) -> str:
        return f"{self.fingerprint}/{self.artifact}"

    @property
    def record(self) -> dict[str, str]:
        return {"stage": self.name, "artifact": self.artifact}


@dataclasses.dataclass(frozen=True)
class FromFile:
    """A file or folder that the user brought; it counts by its bytes, not by its name."""

    path: Path
    sha256: str

    @property
    def identity(self) -> str:
        return f"sha256:{self.sha256}"

    @property
    def record(self) -> dict[str, str]:
        return {"file": str(self.path), "sha256": self.sha256}


Input = FromStage | FromFile


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
    """One place of the table: a row meets a task, with one seed."""

    row: str
    task: str  # empty for a row that is only pretrained
    seed: int = 0

    @property
    def place(self) -> str:
        """Name for people."""
        return f"{self.row} on {self.task}" if self.task else self.row


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """A stage with everything that names its folder.

    Attributes:
        serves: cells that need it, directly or not.
        answers: cells whose numbers it measures itself.
    """

    ref: str
    stage: Stage
    name: str  # kind/label-fingerprint, relative to the run folder
    dir: Path
    fingerprint: str
    upstream: Mapping[str, Input]
    content_ids: Mapping[str, str]
    serves: tuple[Cell, ...] = ()
    answers: tuple[Cell, ...] = ()

    @property
    def kind(self) -> str:
        return self.stage.kind

    @property
    def parents(self) -> tuple[str, ...]:
        """Names of the stages it waits for."""
        return tuple(
            dict.fromkeys(i.name for i in self.upstream.values() if isinstance(i, FromStage))
        )

    def output(self, artifact: str) -> FromStage:
        """Name one of its artifacts as an input of another stage."""
        return FromStage(self.name, self.fingerprint, artifact)

    def record(self) -> dict[str, Any]:
        """What ``stage.json`` says about it; inputs are relative to the run folder."""
        upstream = {name: item.identity for name, item in self.upstream.items()}
        inputs = {name: item.record for name, item in self.upstream.items()}
        identity = describe(self.stage, self.ref, self.fingerprint, upstream, self.content_ids)
        return {**identity, "inputs": inputs}


@dataclasses.dataclass(frozen=True)
class Missing:
    """Cells that cannot be planned, because what a stage is depends on data that are not there.

    Attributes:
        tags: names by which ``--only`` asks for them.
    """

    cells: tuple[Cell, ...]
    tags: frozenset[str]
    error: DataError


def plan(suite: Suite, roots: DataRoots, runs: Path) -> list[PlannedStage]:
    """List the stages of ``suite``, parents before children, equal stages merged.

    Raises:
        ConfigError: a config of the suite is wrong.
        DataError: data that a stage reads are missing.
    """
    stages, missing = survey(suite, roots, runs)
    if missing:
        raise missing[0].error
    return stages


def survey(suite: Suite, roots: DataRoots, runs: Path) -> tuple[list[PlannedStage], list[Missing]]:
    """Do as ``plan`` does, but list what lacks its data beside the stages that have theirs."""
    builder = _Builder(roots, runs)
    missing: list[Missing] = []
    if suite.cell:
        pretraining(suite.base_row)  # what is wrong with the base is no cell's fault
    for line in suite.lines:
        for seed in range(suite.seeds):
            missing += _plan_line(builder, suite, line, seed)
    return list(builder.stages.values()), missing


def _plan_line(builder: "_Builder", suite: Suite, line: Line, seed: int) -> list[Missing]:
    row = line.row
    source_seed = seed if suite.repeat_from == "pretrain" else 0
    # MaskQuality compares generations of bootstrapped masks: only a pretraining run has them.
    tasks = [task for task in line.tasks if task.stage != "mask_quality" or row.pretrain]
    cells = {task.id: Cell(row.method, task.id, seed) for task in tasks}
    served = tuple(cells.values()) or (Cell(row.method, "", seed),)
    try:
        source = _plan_source(builder, row, source_seed, served)
    except DataError as error:
        tags = {"pretrain"}.union(*(_tags_of(task) for task in tasks))
        return [Missing(served, frozenset(tags), error)]
    missing = []
    for task in tasks:
        try:
            _plan_task(builder, suite, row, task, seed, source, cells[task.id])
        except DataError as error:
            missing.append(Missing((cells[task.id],), frozenset(_tags_of(task)), error))
    return missing


def _tags_of(task: Task) -> set[str]:
    return {task.id, task.stage, resolve(REFS[task.stage]).kind}


def _plan_source(
    builder: "_Builder", row: Row, seed: int, cells: tuple[Cell, ...]
) -> Mapping[str, Input]:
    """Plan where the backbone comes from; return the inputs that it offers."""
    if row.checkpoint is not None:
        return {"checkpoint": builder.imported(row.checkpoint, row.method)}
    if row.pretrain is None:
        config_type = resolve(REFS["random"]).config_type
        config = build(config_type, row.random or {}, f"row {row.method!r}")
        made = builder.add("random", _reseeded(config, seed), {}, serves=cells)
        return {"checkpoint": made.output("checkpoint")}
    config = pretraining(row).config
    brought: Mapping[str, Path] = getattr(config, "inputs", {})
    given = {name: builder.imported(path, row.method, name) for name, path in brought.items()}
    made = builder.add("pretrain", _reseeded(config, seed), given, serves=cells)
    return {"checkpoint": made.output("checkpoint"), "masks": made.output("masks")}


def pretraining(row: Row) -> Stage:
    """Build the stage of a pretrained row, with the config's own seed.

    Raises:
        ConfigError: its config, or a change of it, is wrong.
    """
    assert row.pretrain is not None, "only a row with a pretraining config is pretrained"
    stage_class = resolve(REFS["pretrain"])
    where = f"{row.pretrain} as {row.method!r} sets it" if row.set else str(row.pretrain)
    table = overlay(read_toml(row.pretrain), row.set)
    stage: Stage = stage_class(build(stage_class.config_type, table, where))
    return stage


def _plan_task(
    builder: "_Builder",
    suite: Suite,
    row: Row,
    task: Task,
    seed: int,
    source: Mapping[str, Input],
    cell: Cell,
) -> None:
    config_type = resolve(REFS[task.stage]).config_type
    config = _reseeded(_task_config(task), seed)
    _require_same_name(task, config)
    if suite.strict and "strict" in config_type.model_fields:  # what weights and data add to it
        config = config.model_copy(update={"strict": True})
    inputs = {"checkpoint": source["checkpoint"]}
    if task.stage == "mask_quality":
        inputs = dict(source)
    elif task.stage == "detection":
        convert = _plan_convert(builder, row, config.layout, inputs, cell)
        inputs = {"weights": convert.output("weights")}
    elif "branch" in config_type.model_fields:
        config = config.model_copy(update={"branch": row.branch})
    builder.add(task.stage, config, inputs, serves=(cell,), answers=(cell,))


def _plan_convert(
    builder: "_Builder", row: Row, layout: str, inputs: Mapping[str, Input], cell: Cell
) -> PlannedStage:
    wanted: dict[str, Any] = {"layout": layout, "branch": row.branch}
    if row.rescale is not None:
        wanted["rescale"] = row.rescale
    if row.rescale_to is not None:
        wanted["anchor_branch"] = row.anchor_branch
        anchor = builder.imported(row.rescale_to, row.method, "anchor")
        inputs = {**inputs, "anchor": anchor}
    config = build(resolve(REFS["convert"]).config_type, wanted, f"row {row.method!r}")
    return builder.add("convert", config, inputs, serves=(cell,))


def _require_same_name(task: Task, config: Any) -> None:
    """Keep a small twin's numbers from standing under the name of the real protocol."""
    measured = getattr(config, "task", task.id)
    if measured != task.id:
        raise ConfigError(f"task {task.id!r}: {task.config} measures {measured!r}; call it that")


def _reseeded(config: Any, seed: int) -> Any:
    """Shift the config's seed; a stage without one gives the same number for every seed."""
    if seed == 0 or "seed" not in type(config).model_fields:
        return config
    return config.model_copy(update={"seed": config.seed + seed})


class _Builder:
    """Collects stages by name, so that two rows asking for the same work share it."""

    def __init__(self, roots: DataRoots, runs: Path) -> None:
        self.roots, self.runs = roots, runs
        self.stages: dict[str, PlannedStage] = {}
        self._contents: dict[tuple[str, ...], dict[str, str]] = {}
        self._imports: dict[Path, FromFile] = {}

    def add(
        self,
        what: str,
        config: Any,
        upstream: Mapping[str, Input],
        *,
        serves: tuple[Cell, ...],
        answers: tuple[Cell, ...] = (),
    ) -> PlannedStage:
        ref = REFS[what]
        stage = resolved(resolve(ref)(config))
        contents = self._content_ids(stage)
        identities = {name: item.identity for name, item in upstream.items()}
        mark = fingerprint(stage, identities, contents)
        name = f"{stage.kind}/{stage.label}-{mark}"
        made = self.stages.get(name) or PlannedStage(
            ref, stage, name, self.runs / name, mark, dict(upstream), contents
        )
        self.stages[name] = dataclasses.replace(
            made,
            serves=tuple(dict.fromkeys((*made.serves, *serves))),
            answers=tuple(dict.fromkeys((*made.answers, *answers))),
        )
        return self.stages[name]

    def _content_ids(self, stage: Stage) -> dict[str, str]:
        needs = stage.needs()
        if needs not in self._contents:
            self._contents[needs] = content_ids(stage, self.roots)
        return self._contents[needs]

    def imported(self, path: Path, method: str, name: str = "checkpoint") -> FromFile:
        if path not in self._imports:
            what, is_there = "checkpoint file", path.is_file()
            if name == "store":
                what, is_there = "mask store", path.is_dir()
            if not is_there:
                raise ConfigError(f"row {method!r}: there is no {what} {path}")
            self._imports[path] = FromFile(path, file_sha256(path))
        return self._imports[path]


def data_needs(suite: Suite) -> tuple[str, ...]:
    """Data specs and image paths that the stages of a suite read, there or not.

    Raises:
        ConfigError: a config of the suite is wrong.
    """
    pretrained = [pretraining(line.row) for line in suite.lines if line.row.pretrain]
    asked = [task for task in suite.task if task.stage != "mask_quality" or pretrained]
    measuring = [resolve(REFS[task.stage])(_task_config(task)) for task in asked]
    specs = (spec for stage in (*pretrained, *measuring) for spec in stage.needs())
    return tuple(dict.fromkeys(specs))


def _task_config(task: Task) -> Any:
    table = read_toml(task.config) if task.config else {}
    where = str(task.config or f"task {task.id!r}")
    return build(resolve(REFS[task.stage]).config_type, overlay(table, task.set), where)


def require_protocols(stages: Iterable[PlannedStage]) -> None:
    """Refuse stages whose numbers would depart from a published protocol, before any of them runs.

    Finished ones are held to what their numbers say: weights and data may depart as well.

    Raises:
        ConfigError: lists every departure of every stage.
    """
    answering = [stage for stage in stages if stage.answers]
    found = {s.name: dict.fromkeys((*departing(s.stage), *_told(s))) for s in answering}
    listed = [f"  {name}: {line}" for name, lines in found.items() for line in lines]
    if listed:
        raise ConfigError(
            "the suite is strict and these are not the published protocols:\n"
            + "\n".join(listed)
            + "\nMend these, or run without --strict: then each is a footnote of the numbers"
        )


def _told(stage: PlannedStage) -> tuple[str, ...]:
    path = stage.dir / "results.json"
    is_finished = status(stage.dir) == "done" and path.exists()
    return told_departures(read_results(path)) if is_finished else ()


def select(stages: Iterable[PlannedStage], only: Iterable[str]) -> list[PlannedStage]:
    """Keep the stages of the named kinds or tasks, with all they build on; all without a name."""
    stages, only = list(stages), list(only)
    if not only:
        return stages
    tags = {stage.name: _tags(stage) for stage in stages}
    known = sorted(set().union(*tags.values()))
    for name in only:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"--only {name}: the suite has no such task or stage kind; {hint}")
    kept = {name for name, own in tags.items() if own & set(only)}
    for stage in reversed(stages):  # children come after their parents
        if stage.name in kept:
            kept.update(stage.parents)
    return [stage for stage in stages if stage.name in kept]


def _tags(stage: PlannedStage) -> set[str]:
    """Names by which ``--only`` finds a stage."""
    purposes = {purpose for purpose, ref in REFS.items() if ref == stage.ref}
    return {stage.kind, *purposes, *(cell.task for cell in stage.answers)}
