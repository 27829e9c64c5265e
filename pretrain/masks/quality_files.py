"""What is kept of a measurement: quality.json (means, by image size and by K), quality.csv (every
image), curve.png (the measures over the generations' epochs, the paper's Fig. 5b).
"""

import csv
import itertools
import math
import re
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.masks.agreement import BOUNDARY_TOLERANCE
from pretrain.masks.quality import COUNTS, FLOOR, IMAGE_SIZES, MEASURES, Quality, Scores
from sslbench.files import atomic_path, write_json

SHARES = tuple(name for name in MEASURES if name not in COUNTS)
DEFINITIONS = {
    "ari": "adjusted Rand index over pixels (Hubert and Arabie 1985); 100 equal, 0 chance; the "
    "background is one region. The headline",
    "hungarian_miou": "mean IoU over regions of the best one-to-one match, after the map was "
    "merged to as many segments as there are regions (the smallest into its longest neighbour)",
    "best_overlap": "mean over all objects of the highest IoU with a single segment",
    "boundary_recall": "share of region borders with a border of ours within the tolerance; grows "
    "with the number of segments",
    "majority_miou": "mean IoU over regions when each segment goes to the region that has most of "
    "it; grows with the number of segments: any fine grid wins it",
    "segments": "segments in an image",
    "regions": "annotated regions of an image",
    "objects": "annotated objects of an image, as far as others do not hide them",
    "equal_grid": "the same of a grid that has about as many segments as the map, image by image",
}
DRAWN = {  # measure -> title
    "ari": "adjusted Rand index",
    "hungarian_miou": "Hungarian mIoU",
    "best_overlap": "best overlap",
    "boundary_recall": "boundary recall",
}


def write_quality(folder: Path, quality: Quality) -> dict[str, str]:
    """Write all three files; return artifact -> name. The curve only where epochs are known."""
    write_json(folder / "quality.json", summary(quality))
    _write_rows(folder / "quality.csv", quality)
    made = {"quality": "quality.json", "images": "quality.csv"}
    if generations(quality):
        draw_curve(folder / "curve.png", quality)
        made["curve"] = "curve.png"
    return made


def summary(quality: Quality) -> dict[str, Any]:
    """All means as JSON values; shares in percent, null where nothing was to be measured."""
    sizes = quality.size_bins()
    sources = {
        name: {
            "manifest": dict(scores.manifest),
            "all": _means(quality, name),
            "by_image_size": {bin: _means(quality, name, of) for bin, of in sizes.items()},
            "by_clusters": {
                bin: _means(quality, name, of) for bin, of in quality.cluster_bins(name).items()
            },
        }
        for name, scores in quality.sources.items()
    }
    return {
        "data": quality.spec,
        "data_id": quality.data_id,
        "num_images": len(quality.names),
        "definitions": DEFINITIONS,
        "boundary_tolerance": f"{BOUNDARY_TOLERANCE} of the image's diagonal, at least a pixel",
        "image_sizes": {name: f"below {end} pixels" for name, end in IMAGE_SIZES.items() if end},
        "sources": sources,
    }


def _means(
    quality: Quality, source: str, chosen_I: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    scores = quality.sources[source]
    return {
        "num_images": scores.num_images("ari", chosen_I),
        **{name: _shown(scores, name, chosen_I) for name in MEASURES},
        "equal_grid": {name: _shown(scores.equal_grid, name, chosen_I) for name in SHARES},
    }


def _shown(scores: Scores, measure: str, chosen_I: NDArray[np.bool_] | None) -> float | None:
    mean = scores.mean(measure, chosen_I)
    return None if math.isnan(mean) else round(mean * (1 if measure in COUNTS else 100), 4) + 0.0


def _write_rows(path: Path, quality: Quality) -> None:
    """One line for each source and image; shares 0..1, empty where nothing was to be measured."""
    sizes = quality.size_bins()
    size_of = [next(n for n in sizes if sizes[n][i]) for i in range(len(quality.names))]
    with atomic_path(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        known = ("source", "image", "height", "width", "image_size", "clusters")
        writer.writerow((*known, *MEASURES, *(f"{name}_equal_grid" for name in SHARES)))
        for source, scores in quality.sources.items():
            columns = zip(
                quality.names,
                quality.sizes_I2.tolist(),
                size_of,
                scores.clusters_I.tolist(),
                scores.values_IM.tolist(),
                scores.equal_grid_IM[:, : len(SHARES)].tolist(),
                strict=True,
            )
            for name, size, size_name, clusters, values, grid in columns:
                shown = ["" if math.isnan(value) else f"{value:.6g}" for value in (*values, *grid)]
                writer.writerow((source, name, *size, size_name, clusters, *shown))


def generations(quality: Quality) -> dict[tuple[str, str], dict[str, int]]:
    """A run's sources, in their order, with the epoch before which each one's masks were made.

    They are called ``{source}_epoch_0006`` or, of a second run, ``{source}_RUN/masks/epoch_0006``.
    All else is no generation, as a control, whatever epoch its manifest has.

    Returns:
        (kind of source, what names begin with) -> name -> epoch.
    """
    found: dict[tuple[str, str], dict[str, int]] = {}
    for name, scores in quality.sources.items():
        kind = str(scores.manifest["source"])
        written = re.fullmatch(rf"({re.escape(kind)}_.*)epoch_(\d+)", name)
        if written:
            found.setdefault((kind, written[1]), {})[name] = int(written[2])
    return {run: dict(sorted(epochs.items(), key=itemgetter(1))) for run, epochs in found.items()}


LEGEND: Any = {"loc": "outside lower center", "ncols": 6, "frameon": False, "fontsize": 8}


def draw_curve(path: Path, quality: Quality) -> None:
    """Draw the measures over the epochs, a line for a run and one for grids of as many segments;
    what is no generation lies across.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.9 * len(DRAWN), 3.1), layout="constrained")
    axes = figure.subplots(1, len(DRAWN))
    for axis, (measure, title) in zip(axes, DRAWN.items(), strict=True):
        _draw_measure(axis, quality, measure)
        axis.set_title(f"{title} (%)", fontsize=9)
        axis.set_xlabel("epoch before which masks were made", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
    legend = figure.legend(*axes[0].get_legend_handles_labels(), **LEGEND)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a store may be called a$b
    figure.suptitle(f"masks against {quality.spec}, {len(quality.names)} images", fontsize=9)
    with atomic_path(path) as scratch:
        figure.savefig(scratch, format="png", dpi=110)


def _draw_measure(axis: Any, quality: Quality, measure: str) -> None:
    runs, sources = generations(quality), quality.sources
    for (_, beginning), epochs in runs.items():
        run = beginning.rstrip("/_")
        heights = [100 * sources[name].mean(measure) for name in epochs]
        (line,) = axis.plot(list(epochs.values()), heights, "o-", markersize=3, label=run)
        floors = [100 * sources[name].equal_grid.mean(measure) for name in epochs]
        dotted = {"color": line.get_color(), "linewidth": 1}
        label = f"{run}: grid of as many segments"
        axis.plot(list(epochs.values()), floors, "x:", label=label, **dotted)
    placed = set().union(*runs.values())
    others = [name for name in sources if name not in placed]
    for name, style in zip(others, itertools.cycle(("--", ":", "-.")), strict=False):
        height = 100 * sources[name].mean(measure)
        label = "5x5 grid" if name == FLOOR else name.replace("_", " ")
        axis.axhline(height, color="gray", linestyle=style, label=label)
