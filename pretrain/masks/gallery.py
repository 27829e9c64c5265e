"""A picture of masks: image, every generation, annotated objects, side by side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pretrain.masks.cells import enlarge
from pretrain.masks.quality import AnnotatedImages, instance_map
from pretrain.masks.store import MaskStore
from sslbench.datasets import decode_rgb
from sslbench.files import atomic_path


def draw_gallery(
    path: Path, stores: Mapping[str, MaskStore], annotated: AnnotatedImages, count: int
) -> None:
    """Draw ``count`` images, evenly spread over the annotated ones, as a PNG."""
    from matplotlib.figure import Figure

    places = np.linspace(0, len(annotated.records) - 1, min(count, len(annotated.records)))
    titles = ["image", *stores, "annotated objects"]
    figure = Figure(figsize=(2.2 * len(titles), 2.2 * len(places)), layout="constrained")
    axes = figure.subplots(len(places), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    for row, place in zip(axes, places.round().astype(int), strict=True):
        index, record = annotated.records[place]
        name = annotated.images.name(index)
        size = (record.height, record.width)
        masks = [_colour(enlarge(store.read(index), *size)) for store in stores.values()]
        pixels = decode_rgb(annotated.images.read(index), name)
        panels = [pixels, *masks, _colour(instance_map(record))]
        for axis, panel in zip(row, panels, strict=True):
            axis.imshow(panel, interpolation="nearest")
            axis.set_axis_off()
    with atomic_path(path) as scratch:
        figure.savefig(scratch, format="png", dpi=110)


def _colour(labels: np.ndarray) -> np.ndarray:
    """Give the labels of one image colours that differ; frequent labels first."""
    values, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(values), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(values))
    colours: np.ndarray = _palette(len(values))[rank[inverse.reshape(labels.shape)]]
    return colours


def _palette(count: int) -> np.ndarray:
    """Hues by the golden ratio, in three brightnesses: neighbours in rank look different."""
    from matplotlib.colors import hsv_to_rgb

    numbers = np.arange(count)
    hues = numbers * 0.618034 % 1
    return hsv_to_rgb(np.stack([hues, 0.75 - 0.25 * (numbers % 2), 0.95 - 0.2 * (numbers % 3)], 1))
