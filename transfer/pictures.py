"""One picture of test images: ground truth on the left, the best predictions on the right."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from sslbench.datasets import Dataset, Record, decode_rgb
from sslbench.files import atomic_path
from transfer.engines.masks import rasterise

HEIGHT = 240  # pixels of each image
MIN_SCORE, MIN_SHOWN = 0.3, 3  # weaker predictions clutter the picture, beyond the best three
PALETTE = (
    *("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000"),
    *("#808000", "#000075", "#f032e6", "#46f0f0", "#bcf60c", "#fabebe", "#ffe119", "#aaffc3"),
)


def pictured(dataset: Dataset, num_images: int) -> tuple[Record, ...]:
    """Evenly spaced test images that hold objects."""
    with_objects = [record for record in dataset.records if record.objects]
    places = np.linspace(0, len(with_objects) - 1, min(num_images, len(with_objects)))
    return tuple(with_objects[int(place)] for place in places)


def draw_detections(
    path: Path, dataset: Dataset, records: Sequence[Record], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Draw images beside their predictions; rows of other images are left alone."""
    found: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: -row["score"]):
        shown = found[row["image_id"]]
        if row["score"] >= MIN_SCORE or len(shown) < MIN_SHOWN:
            shown.append(row)
    class_of = {category: index for index, category in enumerate(dataset.category_ids)}
    pairs = []
    for record in records:
        canvas = _Canvas(record, dataset.classes)
        truth = canvas.draw(
            (o.category, o.box, o.segmentation, "difficult" if o.difficult else "")
            for o in record.objects
        )
        predicted = canvas.draw(
            (
                class_of[r["category_id"]],
                _corners(r["bbox"]),
                r.get("segmentation"),
                f"{r['score']:.2f}",
            )
            for r in reversed(found[record.image_id])  # the best on top
        )
        pairs.append((truth, predicted))
    with atomic_path(path) as scratch:
        _mosaic(pairs).save(scratch, format="PNG")


def _corners(bbox: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = bbox
    return x, y, x + width, y + height


class _Canvas:
    def __init__(self, record: Record, classes: Sequence[str]) -> None:
        self.record, self.classes = record, classes
        self.scale = HEIGHT / record.height
        pixels = decode_rgb(record.path.read_bytes(), str(record.path))
        size = (max(1, round(record.width * self.scale)), HEIGHT)
        self.image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)

    def draw(self, items: Any) -> Image.Image:
        """Draw (category, box, segmentation or None, note) items."""
        image = self.image.copy()
        for category, box, segmentation, note in items:
            colour = PALETTE[category % len(PALETTE)]
            if segmentation:
                self._tint(image, segmentation, colour)
            draw = ImageDraw.Draw(image)
            x0, y0, x1, y1 = (side * self.scale for side in box)
            draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=2)
            text = f"{self.classes[category]} {note}".strip()
            room = image.width - draw.textlength(text) - 2
            place = (max(0, min(x0 + 2, room)), max(0, y0 - 11))
            left, top, right, bottom = draw.textbbox(place, text)
            draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=colour)
            draw.text(place, text, fill=_readable_on(colour))
        return image

    def _tint(self, image: Image.Image, segmentation: Any, colour: str) -> None:
        mask = rasterise(segmentation, self.record.height, self.record.width, str(self.record.path))
        stencil = Image.fromarray(mask * 110).resize(image.size, Image.Resampling.NEAREST)
        image.paste(colour, (0, 0), stencil)


def _readable_on(colour: str) -> str:
    red, green, blue = ImageColor.getrgb(colour)[:3]
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 150  # luma of BT.601
    return "black" if is_light else "white"


def _mosaic(pairs: Sequence[tuple[Image.Image, Image.Image]], gap: int = 6) -> Image.Image:
    """Two pairs a row, each ground truth | predictions."""
    strips = [_join(pair, gap // 2, across=True) for pair in pairs]
    rows = [_join(strips[i : i + 2], 3 * gap, across=True) for i in range(0, len(strips), 2)]
    return _join(rows, gap, across=False) if rows else Image.new("RGB", (1, 1))


def _join(images: Sequence[Image.Image], gap: int, *, across: bool) -> Image.Image:
    along: Callable[[Image.Image], int] = (lambda i: i.width) if across else (lambda i: i.height)
    other: Callable[[Image.Image], int] = (lambda i: i.height) if across else (lambda i: i.width)
    length = sum(along(image) for image in images) + gap * (len(images) - 1)
    breadth = max(other(image) for image in images)
    joined = Image.new("RGB", (length, breadth) if across else (breadth, length), "white")
    place = 0
    for image in images:
        joined.paste(image, (place, 0) if across else (0, place))
        place += along(image) + gap
    return joined
