"""Tables for people: rich on a terminal, padded columns in a pipe or a log."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "interrupted": "yellow",
    "new": "dim",
    "official": "green",
    "not official": "yellow",
    "missing": "red",
    "broken": "red",
}


def print_table(console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one table; words that name a state are coloured."""
    if not console.is_terminal:
        for line in plain_lines(headers, rows):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    console.print(table)


def plain_lines(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad every column to its widest cell."""
    lines = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def branches(depths: Sequence[int]) -> list[str]:
    """Draw the connectors of a tree, given each line's depth in print order; roots get none."""
    return [
        "".join(_connector(depths, line, level) for level in range(1, depth + 1))
        for line, depth in enumerate(depths)
    ]


def _connector(depths: Sequence[int], line: int, level: int) -> str:
    below = (depth for depth in depths[line + 1 :] if depth <= level)
    goes_on = next(below, 0) == level  # another line of this level follows before its parent ends
    if level == depths[line]:
        return "├─ " if goes_on else "└─ "
    return "│  " if goes_on else "   "
