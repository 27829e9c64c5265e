"""python -m sslbench.checkpoint.table: write the table of formats into docs/checkpoints.md."""

import re
from pathlib import Path

from sslbench.checkpoint.formats import FORMATS, Format
from sslbench.files import atomic_path

DOCUMENT = Path(__file__).parents[2] / "docs" / "checkpoints.md"
BEGIN, END = "<!-- formats: begin -->", "<!-- formats: end -->"


def table() -> str:
    """Return a Markdown row for each format."""
    head = f"| code base | in the file | online | target | names | verified |\n|{'---|' * 6}"
    return "\n".join([head, *(_row(name, fmt) for name, fmt in FORMATS.items())])


def _row(name: str, fmt: Format) -> str:
    cells = (
        name,
        fmt.saved,
        _prefixes(fmt.online),
        _prefixes(fmt.target),
        ", ".join(fmt.schemes),
        fmt.verified,
    )
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _prefixes(prefixes: tuple[str, ...]) -> str:
    return ", ".join(f"`{prefix}`" if prefix else "(none)" for prefix in prefixes) or "–"


def with_table(text: str) -> str:
    """Return the document's text with the table between its marks brought up to date."""
    pattern = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{table()}\n{END}", text)


if __name__ == "__main__":
    document = with_table(DOCUMENT.read_text())
    with atomic_path(DOCUMENT) as scratch:
        scratch.write_text(document)
