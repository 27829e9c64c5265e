"""Write RUNS/reports/SUITE: index.html, table.md, table.tex, results.csv, results.json."""

import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from launch.graph import Cell, PlannedStage
from launch.report.page import render
from launch.report.table import Entry, Table, build_table
from launch.report.text import to_csv, to_json, to_latex, to_markdown
from launch.suite import Suite
from launch.tables import plain_lines
from sslbench.files import atomic_path

__all__ = ["write_report"]

MAX_NOTE = 240  # characters of a footnote in the terminal


def write_report(
    suite: Suite,
    stages: Sequence[PlannedStage],
    runs: Path,
    console: Console,
    without_data: Collection[Cell] = (),
) -> Path:
    """Write every format, print the table, and return the path of the page.

    Works at any time: what is missing is named in its place.

    Args:
        without_data: cells that have no stage because their data are not there.
    """
    table = build_table(suite, stages, without_data)
    folder = runs / "reports" / suite.name
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    texts = {
        page: render(suite, table, stages),
        folder / "table.md": to_markdown(table),
        folder / "table.tex": to_latex(table),
        folder / "results.csv": to_csv(table),
        folder / "results.json": to_json(table),
    }
    for path, text in texts.items():
        with atomic_path(path) as scratch:
            scratch.write_text(text, encoding="utf-8")
    _print(table, console)
    return page


def _print(table: Table, console: Console) -> None:
    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    line(table.title, "bold")
    if table.banner:
        line(table.banner, "yellow")
    heads = ["", *(c.metric_title for c in table.columns)]
    tasks = ["", *_task_heads(table)]
    rows = [
        [row, *(_cell(table, table.entry(row, c)) for c in table.columns)] for row in table.rows
    ]
    plain = plain_lines(tasks, [heads, *rows])
    if not console.is_terminal:
        for text in plain:
            line(text)
    elif max(len(text) for text in plain) <= console.width:
        console.print(_rich_table(table, tasks, heads))
    else:
        console.print(_upright_table(table))
    for note in table.footnotes:
        brief = textwrap.shorten(note, MAX_NOTE, placeholder=" ... (whole on the page)")
        line(f"({table.mark(note)}) {brief}", "dim")


def _task_heads(table: Table) -> list[str]:
    """The task's id above its first column, nothing above its others."""
    heads = []
    for task, _, columns in table.groups():
        mark = table.task_mark(task)
        heads += [f"{task} ({mark})" if mark else task, *[""] * (len(columns) - 1)]
    return heads


def _rich_table(table: Table, tasks: list[str], heads: list[str]) -> RichTable:
    shown = RichTable(box=None, header_style="bold", pad_edge=False)
    for index, (task, head) in enumerate(zip(tasks, heads, strict=True)):
        shown.add_column(
            Text(f"{task}\n{head}"), justify="right" if index else "left", overflow="fold"
        )
    for row in table.rows:
        entries = [table.entry(row, column) for column in table.columns]
        shown.add_row(Text(row), *(_styled(table, entry) for entry in entries))
    return shown


def _upright_table(table: Table) -> RichTable:
    """The table turned by 90 degrees, for a terminal narrower than its metrics."""
    shown = RichTable(box=None, header_style="bold", pad_edge=False)
    shown.add_column("")
    for row in table.rows:
        shown.add_column(Text(row), justify="right")
    for task, _, columns in table.groups():
        mark = table.task_mark(task)
        shown.add_row(Text(f"{task} ({mark})" if mark else task, style="bold"))
        for column in columns:
            entries = [table.entry(row, column) for row in table.rows]
            shown.add_row(Text(f"  {column.metric_title}"), *(_styled(table, e) for e in entries))
    return shown


def _styled(table: Table, entry: Entry) -> Text:
    style = "bold" if entry.best else "dim" if entry.gap else ""
    return Text(_cell(table, entry), style=style)


def _cell(table: Table, entry: Entry) -> str:
    mark = table.entry_mark(entry)
    return entry.text + ("*" if entry.best else "") + (f" ({mark})" if mark else "")
