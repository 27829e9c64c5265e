"""How well masks agree with annotated objects: the adjusted Rand index.

Two partitions of the same pixels agree as far as they put the same pairs of pixels together, beyond
chance: 1 for equal partitions, 0 on average for random ones. (How well a segment's majority object
covers it is no measure: any fine grid wins it.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pretrain.masks.cells import enlarge
from pretrain.masks.ground_truth import paint
from pretrain.masks.sources import grid_labels
from pretrain.masks.store import MaskStore
from sslbench.datasets import (
    DataError,
    DataRoots,
    ImageList,
    Record,
    images,
    images_id,
    read,
)
from sslbench.log import RunLog
from sslbench.results import Result

Labels = NDArray[np.integer]

TASK = "mask_quality"
IGNORED = -1  # pixels of a crowd belong to no single object


def adjusted_rand_index(ours: Labels, truth: Labels) -> float:
    """Agreement of two partitions, given as one label per pixel; 1 where both are trivial."""
    _, a = np.unique(ours, return_inverse=True)
    _, b = np.unique(truth, return_inverse=True)
    table = np.bincount(a.ravel() * (b.max() + 1) + b.ravel()).astype(np.float64)
    together = _pairs(table)
    in_a, in_b = _pairs(np.bincount(a.ravel())), _pairs(np.bincount(b.ravel()))
    expected = in_a * in_b / max(_pairs(np.array([a.size])), 1.0)
    best = (in_a + in_b) / 2
    return 1.0 if best == expected else float((together - expected) / (best - expected))


def _pairs(counts: np.ndarray) -> float:
    counts = counts.astype(np.float64)
    return float((counts * (counts - 1) / 2).sum())


def instance_map(record: Record) -> NDArray[np.int32]:
    """Paint an image's objects, large ones first: 0 background, 1.. objects, -1 crowds."""
    return paint(record, lambda number, item: IGNORED if item.crowd else number)


@dataclass(frozen=True)
class AnnotatedImages:
    """Images of a split that have objects, with their places in the image list."""

    spec: str
    images: ImageList
    images_id: str
    records: tuple[tuple[int, Record], ...]  # (index in ``images``, record)

    @classmethod
    def load(cls, spec: str, roots: DataRoots) -> Self:
        """Match a split's annotations to its image list."""
        listed = images(spec, roots)
        places = {listed.name(index): index for index in range(len(listed))}
        records = tuple(
            (places[record.path.name], record)
            for record in read(spec, roots).records
            if any(not item.crowd for item in record.objects)
        )
        if not records:
            raise DataError(f"{spec} has no image with an annotated object to measure masks on")
        return cls(spec, listed, images_id(listed), records)


def measure(
    stores: Mapping[str, MaskStore], annotated: AnnotatedImages, data_id: str, log: RunLog
) -> list[Result]:
    """Average the index over the annotated images, for every generation and for the 5x5 grid.

    The grid goes through the same stride-8 store resolution as the masks.
    """
    scores: dict[str, list[float]] = {name: [] for name in (*stores, "grid5x5")}
    with log.progress(len(annotated.records), "mask quality") as bar:
        for index, record in annotated.records:
            truth = instance_map(record)
            for name in scores:
                labels = stores[name].read(index) if name in stores else _grid(record)
                scores[name].append(_score(labels, truth))
            bar.advance()
    return [
        Result(
            task=TASK,
            metric=_metric_name(name),
            value=100 * float(np.mean(values)),
            num_images=len(values),
            data_id=data_id,
        )
        for name, values in scores.items()
    ]


def _grid(record: Record) -> np.ndarray:
    return grid_labels(record.height, record.width)


def _score(labels_hw: Labels, truth_HW: Labels) -> float:
    counted = truth_HW != IGNORED
    return adjusted_rand_index(enlarge(labels_hw, *truth_HW.shape)[counted], truth_HW[counted])


def _metric_name(name: str) -> str:
    return "ari_grid5x5" if name == "grid5x5" else f"ari_kmeans_{name}"
