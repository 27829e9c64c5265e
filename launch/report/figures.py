"""Figures of the page: curves as inline SVG, pictures that stages left as data URLs."""

import base64
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

INK = "#0a0b0c"  # stands for the page's text colour, whatever its scheme
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444")
MAX_POINTS = 400
MAX_PICTURE_SIDE = 1400
WIDE = 1100  # pixels from which a picture spans the page: in a column its letters are too small


def curves(rows: Sequence[Mapping[str, Any]], title: str, keys: Sequence[str]) -> str:
    """Draw some keys of ``metrics.jsonl`` over the steps as SVG text.

    Args:
        rows: of one run, in order; a key may be missing in some.
        keys: at least one, each with a number in some row.
    """
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: it would start a backend

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "sslbench",  # the same run draws the same bytes
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.8, 2.7), layout="constrained")
        axis = figure.subplots()
        for colour, key in zip(itertools.cycle(COLOURS), keys, strict=False):
            axis.plot(*_series(rows, key), color=colour, linewidth=1.4, label=key)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        if len(keys) > 1:
            axis.legend(frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue())


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values; nan breaks the line where a term was not computed for a while."""
    values = [row.get(key, math.nan) for row in rows]
    isolated = all(math.isnan(a) or math.isnan(b) for a, b in itertools.pairwise(values))
    kept = [
        (row["step"], value)
        for row, value in zip(rows, values, strict=True)
        if not (isolated and math.isnan(value))
    ]
    thinned = kept[:: max(1, len(kept) // MAX_POINTS)]
    return [step for step, _ in thinned], [value for _, value in thinned]


def _inline(svg: str) -> str:
    """Cut the XML prologue, scale with the page, take the page's text colour and font."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    head, rest = svg.split(">", 1)
    return re.sub(r'\b(width|height)="[^"]*"', "", head) + ">" + rest.replace("'DejaVu Sans', ", "")


def picture(path: Path) -> str:
    """Return a picture as a data URL, scaled down where it is larger than a page can show."""
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE))
    # A drawing of lines is smaller as PNG, and sharp.
    kind, data = min(
        (("jpeg", _encoded(image, "JPEG", quality=85)), ("png", _encoded(image, "PNG"))),
        key=lambda made: len(made[1]),
    )
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def _encoded(image: "Image", kind: str, **settings: int) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **settings)
    return data.getvalue()


def is_wide(path: Path) -> bool:
    """Tell whether a picture asks for the whole width of the page."""
    from PIL import Image

    with Image.open(path) as opened:
        return opened.width >= WIDE
