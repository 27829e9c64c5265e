"""A table as Markdown, LaTeX (booktabs), CSV and JSON."""

import csv
import dataclasses
import io
import json
from typing import Any

from launch.report.table import Entry, Table

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "–": "--",
    "λ": r"$\lambda$",
}
MARKDOWN = {char: f"\\{char}" for char in "\\`*_[]|<>"}
CSV_KEYS = (
    "row",
    "task",
    "metric",
    "value",
    "reported",
    "std",
    "num_seeds",
    "unit",
    "gap",
    "engine",
    "num_images",
    "data_id",
    "task_version",
    "footnotes",
    "stages",
)


def _escape(text: str, replacements: dict[str, str]) -> str:
    return "".join(replacements.get(char, char) for char in text)


def latex_escape(text: str) -> str:
    """Make any text safe inside LaTeX."""
    return _escape(text, LATEX)


def markdown_escape(text: str) -> str:
    """Make any text safe inside a Markdown table."""
    return _escape(text.replace("\n", " "), MARKDOWN)


def to_markdown(table: Table) -> str:
    """Write a GitHub table; best numbers bold, footnotes below."""

    def cell(entry: Entry) -> str:
        text = f"**{entry.text}**" if entry.best else entry.text
        return text + _sup(table.entry_mark(entry))

    heads = [
        f"{markdown_escape(column.task_title)} {markdown_escape(column.metric_title)}"
        f"{'' if column.is_published else _sup(table.task_mark(column.task))}"
        for column in table.columns
    ]
    lines = [f"# {markdown_escape(table.title)}", ""]
    if table.banner:
        lines += [f"> **{markdown_escape(table.banner)}**", ""]
    lines += [
        f"| method | {' | '.join(heads)} |",
        "|---" + "|---:" * len(heads) + "|",
    ]
    for row in table.rows:
        cells = " | ".join(cell(table.entry(row, column)) for column in table.columns)
        lines.append(f"| {markdown_escape(row)} | {cells} |")
    notes = [f"{_sup(table.mark(note))} {markdown_escape(note)}  " for note in table.footnotes]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def _sup(mark: str) -> str:
    return f"<sup>{mark}</sup>" if mark else ""


def to_latex(table: Table) -> str:
    """Write a booktabs table; needs ``\\usepackage{booktabs}``."""

    def cell(entry: Entry) -> str:
        text = latex_escape(entry.text)
        bold = rf"\textbf{{{text}}}" if entry.best else text
        return bold + _superscript(table.entry_mark(entry))

    tasks, rules, start = [], [], 2
    for task, title, columns in table.groups():
        end = start + len(columns) - 1
        head = latex_escape(title) + _superscript(table.task_mark(task))
        tasks.append(rf"\multicolumn{{{len(columns)}}}{{c}}{{{head}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{end}}}")
        start = end + 1
    heads = [latex_escape(column.metric_title) for column in table.columns]
    sections = [
        [
            " & ".join([latex_escape(row), *(cell(table.entry(row, c)) for c in table.columns)])
            for row in rows
        ]
        for rows in table.sections
    ]
    caption = ". ".join(latex_escape(text) for text in (table.title, table.banner) if text)
    notes = [
        rf"{_superscript(table.mark(note))} {latex_escape(note)}\\" for note in table.footnotes
    ]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(["", *tasks]) + r" \\",
        "".join(rules),
        " & ".join(["method", *heads]) + r" \\",
        *(line for body in sections for line in (r"\midrule", *(row + r" \\" for row in body))),
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\par\smallskip\raggedright\footnotesize", *notes] if notes else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _superscript(mark: str) -> str:
    return rf"\textsuperscript{{{mark}}}" if mark else ""


def to_records(table: Table) -> list[dict[str, Any]]:
    """One flat record a place of the table, gaps included."""
    records = []
    for row in table.rows:
        reported = {
            (c.task, c.metric): table.entry(row, c).published
            for c in table.columns
            if c.is_published
        }
        for column in table.columns:
            if column.is_published:
                continue
            entry = table.entry(row, column)
            first = entry.results[0] if entry.results else None
            records.append(
                {
                    "row": row,
                    "task": column.task,
                    "metric": first.metric if first else column.metric,
                    "value": entry.value,
                    "reported": reported.get((column.task, column.metric)),
                    "std": entry.spread,
                    "num_seeds": len(entry.values),
                    "unit": first.unit if first else "%",
                    "gap": entry.gap,
                    "engine": first.engine if first else "",
                    "num_images": first.num_images if first else 0,
                    "data_id": first.data_id if first else "",
                    "task_version": first.task_version if first else None,
                    "footnotes": list(entry.notes),
                    "stages": list(entry.stages),
                }
            )
    return records


def to_csv(table: Table) -> str:
    """Write the records; lists are joined by ``; ``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_KEYS, lineterminator="\n")
    writer.writeheader()
    for record in to_records(table):
        joined = {k: "; ".join(v) if isinstance(v, list) else v for k, v in record.items()}
        writer.writerow(joined)
    return text.getvalue()


def to_json(table: Table) -> str:
    """Write the numbers, and apart from them the gaps with their reasons."""
    records = to_records(table)
    payload = {
        "suite": table.name,
        "title": table.title,
        "banner": table.banner,
        "rows": list(table.rows),
        "columns": [dataclasses.asdict(column) for column in table.columns],
        "results": [record for record in records if record["value"] is not None],
        "gaps": [record for record in records if record["value"] is None],
    }
    return json.dumps(payload, indent=2, ensure_ascii=False) + "\n"
