"""Result rows of a suite's stages -> one table: methods x (task, metric), every gap explained."""

import dataclasses
import fnmatch
import itertools
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence

from launch.graph import Cell, PlannedStage
from launch.report.footnotes import inherited_notes, intended_notes
from launch.state import State, read_state
from launch.suite import Suite
from sslbench.results import Result, read_results
from sslbench.stage import DONE_FILE

RESULTS_FILE = "results.json"
MIN_REPEATED_WORDS = 3
NOTHING = "–"  # nothing to ask for: a row without masks, a cell of another task
GAPS: Mapping[State, str] = {
    "new": "not run",
    "running": "running",
    "failed": "failed",
    "interrupted": "interrupted",
    "done": "not evaluated",
}


@dataclasses.dataclass(frozen=True)
class Column:
    """One metric of one task: what was measured, or what was published of it."""

    task: str
    task_title: str
    metric: str  # as the suite names it, perhaps a pattern
    is_published: bool = False

    @property
    def metric_title(self) -> str:
        """For people: ``box_AP50`` -> ``box AP50``, ``ari_kmeans_*`` -> ``ari kmeans``."""
        if self.is_published:
            return "reported"
        return self.metric.removesuffix("_*").replace("_", " ")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One place of the table: a number with its spread, or why there is none."""

    row: str
    column: Column
    results: tuple[Result, ...]  # one per seed that was measured
    gap: str  # empty where there is a number
    notes: tuple[str, ...]  # deviations from the protocol, and the engine
    stages: tuple[str, ...]  # names of the stages that answer it, one per seed
    best: bool = False
    published: float | None = None  # in a column of published values only

    @property
    def values(self) -> list[float]:
        return [result.value for result in self.results if result.value is not None]

    @property
    def value(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def text(self) -> str:
        """The number as printed, or the gap."""
        if self.published is not None:
            return max(f"{self.published:.1f}", f"{self.published:g}", key=len)  # 58.0, 9.75
        if self.value is None:
            return self.gap
        spread = "" if self.spread is None else f" ± {self.spread:.1f}"
        return f"{self.value:.1f}{spread}"


@dataclasses.dataclass(frozen=True)
class Table:
    """All a report prints, in print order."""

    name: str
    title: str
    banner: str
    sections: tuple[tuple[str, ...], ...]  # rows, apart by the published table they belong to
    columns: tuple[Column, ...]
    entries: Mapping[tuple[str, Column], Entry]
    footnotes: tuple[str, ...]  # their marks are a, b, c, ...

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(itertools.chain.from_iterable(self.sections))

    def entry(self, row: str, column: Column) -> Entry:
        return self.entries[row, column]

    def groups(self) -> list[tuple[str, str, list[Column]]]:
        """Columns by task: (task id, title, columns)."""
        found: dict[str, list[Column]] = {}
        for column in self.columns:
            found.setdefault(column.task, []).append(column)
        return [(task, columns[0].task_title, columns) for task, columns in found.items()]

    def mark(self, footnote: str) -> str:
        """Letter of a footnote: a ... z, then aa, ab ..."""
        index, letters = self.footnotes.index(footnote), ""
        while index >= 0:
            index, letters = index // 26 - 1, chr(ord("a") + index % 26) + letters
        return letters

    def task_mark(self, task: str) -> str:
        """Mark of what all numbers of a task have in common; empty if that is nothing."""
        note = _joined(shared_notes(self._entries_of(task)))
        return self.mark(note) if note else ""

    def entry_mark(self, entry: Entry) -> str:
        """Mark of what sets a number apart from the others of its task; empty if nothing does."""
        note = _joined(_own_notes(entry, self._entries_of(entry.column.task)))
        return self.mark(note) if note else ""

    def _entries_of(self, task: str) -> list[Entry]:
        return [entry for (_, column), entry in self.entries.items() if column.task == task]


def shared_notes(entries: Iterable[Entry]) -> list[str]:
    """Notes that all numbers among ``entries`` carry."""
    measured = [entry for entry in entries if entry.value is not None]
    if not measured:
        return []
    return [n for n in measured[0].notes if all(n in entry.notes for entry in measured)]


def _own_notes(entry: Entry, of_task: Sequence[Entry]) -> list[str]:
    shared = shared_notes(of_task)
    return [note for note in entry.notes if note not in shared]


def _joined(notes: Sequence[str]) -> str:
    """One sentence; words that a note begins with like the one before it are said once."""
    said = notes[:1]
    for before, note in itertools.pairwise(notes):
        words, earlier = note.split(), before.split()
        pairs = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(words, earlier, strict=False)
        )
        repeated = len(list(pairs))
        said = [*said, " ".join(words[repeated:] if repeated >= MIN_REPEATED_WORDS else words)]
    return "; ".join(said)


def _footnotes(entries: Mapping[tuple[str, Column], Entry]) -> tuple[str, ...]:
    """One footnote a task, and one for each number that departs from its task's others."""
    found: dict[str, None] = {}
    by_task: dict[str, list[Entry]] = {}
    for (_, column), entry in entries.items():
        by_task.setdefault(column.task, []).append(entry)
    for of_task in by_task.values():
        found[_joined(shared_notes(of_task))] = None
        found |= dict.fromkeys(_joined(_own_notes(entry, of_task)) for entry in of_task)
    return tuple(note for note in found if note)


@dataclasses.dataclass(frozen=True)
class _Found:
    """What lies on disk, by the name of its stage."""

    measured: Mapping[str, list[Result]]
    blocked: Collection[str]
    inherited: Mapping[str, tuple[str, ...]]  # notes of what a stage builds on
    intended: Mapping[str, Collection[str]]  # row -> notes that its label says already


def build_table(
    suite: Suite, stages: Sequence[PlannedStage], without_data: Collection[Cell] = ()
) -> Table:
    """Fill the suite's table with what is on disk now."""
    sections, columns = _sections(suite), _columns(suite)
    published = _published(suite)
    answers = {cell: stage for stage in stages for cell in stage.answers}
    found = _Found(
        {stage.name: _results(stage) for stage in stages if stage.answers},
        _blocked(stages),
        inherited_notes(stages),
        intended_notes(suite),
    )
    entries = {}
    for row, column in itertools.product(itertools.chain.from_iterable(sections), columns):
        if column.is_published:
            entries[row, column] = _published_entry(row, column, published)
            continue
        cells = [Cell(row, column.task, seed) for seed in range(suite.seeds)]
        asked = {answers[cell].name: answers[cell] for cell in cells if cell in answers}
        planned = list(asked.values())  # seeds that change nothing share a stage
        entry = _entry(row, column, planned, found)
        if not planned and set(cells) & set(without_data):
            entry = dataclasses.replace(entry, gap="no data")
        entries[row, column] = entry
    for rows in sections:
        entries = _with_best(rows, columns, entries)
    return Table(
        name=suite.name,
        title=suite.title or suite.name,
        banner=suite.banner,
        sections=sections,
        columns=columns,
        entries=entries,
        footnotes=_footnotes(entries),
    )


def _sections(suite: Suite) -> tuple[tuple[str, ...], ...]:
    """Names of the rows: the suite's own, then those of each published table."""
    found: dict[str, dict[str, None]] = {}
    for line in suite.lines:
        found.setdefault(line.cell.paper if line.cell else "", {})[line.row.method] = None
    return tuple(tuple(rows) for rows in found.values())


def _columns(suite: Suite) -> tuple[Column, ...]:
    """The tasks' metrics; behind the first of a task what was published of it, if anything was."""
    reported = {cell.task for cell in suite.cell if cell.reported is not None}
    columns = []
    for task in suite.task:
        for metric in task.metrics:
            column = Column(task.id, task.title or task.id, metric)
            columns.append(column)
            if task.id in reported and metric == task.metrics[0]:
                columns.append(dataclasses.replace(column, is_published=True))
    return tuple(columns)


def _published(suite: Suite) -> dict[tuple[str, str], float]:
    """(row, task) -> published value."""
    return {
        (cell.row, cell.task): cell.reported for cell in suite.cell if cell.reported is not None
    }


def _published_entry(row: str, column: Column, published: Mapping[tuple[str, str], float]) -> Entry:
    value = published.get((row, column.task))
    gap = NOTHING if value is None else ""
    return Entry(row, column, results=(), gap=gap, notes=(), stages=(), published=value)


def _blocked(stages: Iterable[PlannedStage]) -> set[str]:
    """Names of the stages that cannot start because something they build on failed."""
    failed: set[str] = set()
    blocked: set[str] = set()
    for stage in stages:  # parents come first
        if set(stage.parents) & (failed | blocked):
            blocked.add(stage.name)
        elif read_state(stage.dir) == "failed":
            failed.add(stage.name)
    return blocked


def _results(stage: PlannedStage) -> list[Result]:
    path = stage.dir / RESULTS_FILE
    if not (stage.dir / DONE_FILE).exists() or not path.exists():
        return []
    return [r.model_copy(update={"stage": stage.name}) for r in read_results(path)]


def _entry(row: str, column: Column, planned: Sequence[PlannedStage], found: _Found) -> Entry:
    picked = [r for s in planned if (r := _pick(found.measured[s.name], column.metric))]
    results = tuple(result.model_copy(update={"row": row}) for result in picked)
    has_number = any(result.value is not None for result in results)
    below = (note for stage in planned for note in found.inherited[stage.name])
    inherited = [note for note in below if note not in found.intended.get(row, ())]
    return Entry(
        row=row,
        column=column,
        results=results,
        gap="" if has_number else _gap(planned, found.blocked),
        notes=tuple(dict.fromkeys((*_notes(results), *_few_runs(planned, results), *inherited)))
        if has_number
        else (),
        stages=tuple(stage.name for stage in planned),
    )


def _pick(results: Iterable[Result], metric: str) -> Result | None:
    """The metric, or of a pattern's matches the last by name (the newest generation)."""
    matching = [r for r in results if fnmatch.fnmatchcase(r.metric, metric)]
    return max(matching, key=lambda r: r.metric, default=None)


def _gap(planned: Sequence[PlannedStage], blocked: Collection[str]) -> str:
    if not planned:
        return NOTHING
    states = [read_state(stage.dir) for stage in planned]
    for state in ("failed", "running", "interrupted"):
        if state in states:
            return GAPS[state]
    if any(stage.name in blocked for stage in planned):
        return "blocked"  # the provenance says by what
    return GAPS[states[0]]


def _notes(results: Sequence[Result]) -> tuple[str, ...]:
    """What must stand beside a number: deviations from the protocol, and the engine."""
    notes = dict.fromkeys(note for result in results for note in result.footnotes)
    engines = dict.fromkeys(
        f"measured with the {result.engine} engine" for result in results if result.engine
    )
    return (*engines, *notes)


def _few_runs(planned: Sequence[PlannedStage], results: Sequence[Result]) -> tuple[str, ...]:
    """Say that published numbers are the mean of more runs than ours."""
    published = max(getattr(stage.stage, "published_runs", 1) for stage in planned)
    measured = sum(result.value is not None for result in results)
    if measured >= published:
        return ()
    runs = "one run" if measured == 1 else f"the mean of {measured} runs"
    return (f"{runs}; published numbers are the mean of {published}",)


def _with_best(
    rows: Sequence[str], columns: Sequence[Column], entries: dict[tuple[str, Column], Entry]
) -> dict[tuple[str, Column], Entry]:
    """Mark the highest printed number of each column in which numbers differ."""
    marked = dict(entries)
    for column in columns:
        shown = {row: entries[row, column] for row in rows if entries[row, column].values}
        if len(shown) < 2:
            continue
        printed = {row: round(entry.value or 0.0, 1) for row, entry in shown.items()}
        top = max(printed.values())
        if min(printed.values()) == top:
            continue
        for row, entry in shown.items():
            marked[row, column] = dataclasses.replace(entry, best=printed[row] == top)
    return marked
