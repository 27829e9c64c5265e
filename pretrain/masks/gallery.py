"""Pictures of masks (paper Fig. 4): images, generations and annotated objects side by side.

A PNG for papers and reports, or one HTML page that needs nothing else.
"""

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.masks.colours import BARE, blend, outlines, palette
from pretrain.masks.panels import Panel, Picture, Shown, Wanted, pictures
from pretrain.masks.store import MaskStore
from pretrain.masks.truth import AnnotatedImages
from sslbench.files import atomic_path

TEMPLATE = "gallery.html.j2"
JPEG_QUALITY = 90


def draw_gallery(
    path: Path, stores: Mapping[str, MaskStore], annotated: AnnotatedImages, count: int
) -> None:
    """Draw ``count`` images, evenly spread over the annotated ones, as a PNG."""
    shown = Shown.of(annotated)
    write_png(path, pictures(stores, shown, shown.places(count), Wanted()))


def write_png(path: Path, made: Iterable[Picture]) -> None:
    """Draw a row for each picture: the image, then its panels laid over it."""
    from matplotlib.figure import Figure

    rows = list(made)
    num_columns = 1 + max(len(row.panels) for row in rows)
    figure = Figure(figsize=(2.6 * num_columns, 2.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), num_columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, picture in zip(axes, rows, strict=True):
        row[0].imshow(picture.image_HW3)
        row[0].set_title("image", fontsize=8)
        for axis, panel in zip(row[1:], picture.panels, strict=False):
            axis.imshow(blend(picture.image_HW3, panel.numbers_HW))
            # a store may be called a$b: no formula
            axis.set_title(_caption(panel), fontsize=8, parse_math=False)
    with atomic_path(path) as scratch:
        figure.savefig(scratch, format="png", dpi=150)


def write_page(path: Path, made: Iterable[Picture], title: str, notes: Iterable[str] = ()) -> None:
    """Write one HTML file with all pictures inside it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pretrain.masks", "."), autoescape=True, trim_blocks=True
    )
    shown = [_on_page(picture) for picture in made]
    columns = 1 + max(len(picture["panels"]) for picture in shown)
    text = environment.get_template(TEMPLATE).render(
        title=title, notes=list(notes), pictures=shown, columns=columns
    )
    with atomic_path(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def _on_page(picture: Picture) -> dict[str, Any]:
    height, width = picture.image_HW3.shape[:2]
    panels = [
        {
            "caption": _caption(panel),
            "mask": _png(_coloured(panel.numbers_HW)),
            "outlines": _png(_lines(panel.numbers_HW)),
        }
        for panel in picture.panels
    ]
    photo = _encoded(picture.image_HW3, "JPEG", quality=JPEG_QUALITY)
    return {
        "name": picture.name,
        "width": width,
        "height": height,
        "narrow": round(min(1.0, width / height), 3),  # upright images are no higher than wide ones
        "photo": photo,
        "panels": panels,
    }


def _caption(panel: Panel) -> str:
    return f"{panel.title} ({panel.num_segments})"


def _coloured(numbers_HW: np.ndarray) -> np.ndarray:
    """Colours with transparency, uint8 (H, W, 4): bare pixels let the image through."""
    colours = 255 * palette(int(numbers_HW.max(initial=0)) + 1)
    opaque = np.concatenate([colours, np.full((len(colours), 1), 255.0)], axis=1)
    table = np.concatenate([opaque, np.zeros((1, 4))]).round().astype(np.uint8)
    coloured: np.ndarray = table[np.where(numbers_HW == BARE, len(table) - 1, numbers_HW)]
    return coloured


def _lines(numbers_HW: np.ndarray) -> np.ndarray:
    """White lines between segments, uint8 (H, W, 4)."""
    lines: np.ndarray = np.where(outlines(numbers_HW)[..., None], 255, 0).astype(np.uint8)
    return np.repeat(lines, 4, axis=2)


def _png(pixels: np.ndarray) -> str:
    return _encoded(pixels, "PNG", optimize=True)


def _encoded(pixels: np.ndarray, kind: str, **options: Any) -> str:
    """An image as a ``data:`` address."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{data}"
