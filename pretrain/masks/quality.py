"""How well stores of masks agree with annotated images, image by image.

Masks are enlarged from stride 8 to the image. Beside them stand two floors: the 5x5 grid, the same
for all, and for each map a grid of about as many segments, since how many there are moves every
measure. These are ``pretrain.masks.agreement``'s; the adjusted Rand index is the headline.

Shape letters: I images, M measures.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.masks.agreement import Agreement, Annotated, agreement
from pretrain.masks.cells import cell_of_pixels, enlarge
from pretrain.masks.sources import GRID, grid_labels
from pretrain.masks.store import MaskStore, source_of, stored_size
from pretrain.masks.truth import AnnotatedImages, regions
from sslbench.datasets import DataError, DataRoots, Record, SegmentMap, content_id
from sslbench.loading import made_ahead
from sslbench.log import progress
from sslbench.results import Result

TASK = "mask_quality"
FLOOR = "grid5x5"
MEASURES = tuple(field.name for field in dataclasses.fields(Agreement))
COUNTS = ("segments", "regions", "objects")  # the other measures are shares
REPORTED = tuple(name for name in MEASURES if name not in ("regions", "objects"))

# Upper ends, in pixels of the image: those of 256x256 and 512x512. As COCO does with objects.
IMAGE_SIZES = {"small": 256**2, "medium": 512**2, "large": None}
Floored = tuple[tuple[float, ...], tuple[float, ...]]  # of a map, of a grid with as many segments
CLUSTERS = (1, 4, 8, 16, 32, 64, 128, 256)  # upper ends of the bins of K


@dataclasses.dataclass(frozen=True)
class Scores:
    """What one source of masks reached on each image; nan: nothing to be measured there."""

    manifest: Mapping[str, Any]
    clusters_I: NDArray[np.int64]  # K of the image's group
    values_IM: NDArray[np.float64]
    equal_grid_IM: NDArray[np.float64]  # of a grid with about as many segments

    @property
    def equal_grid(self) -> "Scores":
        """The grid of as many segments in the place of the source."""
        return dataclasses.replace(self, values_IM=self.equal_grid_IM)

    def mean(self, measure: str, chosen_I: NDArray[np.bool_] | None = None) -> float:
        """Average over images; of ``best_overlap`` over objects, as each counts once.

        Args:
            chosen_I: the images that count, by default all.
        """
        values_I = self._column(measure)
        weights_I = self._column("objects") if measure == "best_overlap" else np.ones(len(values_I))
        counted_I = np.isfinite(values_I) if chosen_I is None else np.isfinite(values_I) & chosen_I
        if not counted_I.any():
            return float("nan")
        return float(np.average(values_I[counted_I], weights=weights_I[counted_I]))

    def num_images(self, measure: str, chosen_I: NDArray[np.bool_] | None = None) -> int:
        """Images that have something to be measured."""
        finite_I = np.isfinite(self._column(measure))
        return int((finite_I if chosen_I is None else finite_I & chosen_I).sum())

    def _column(self, measure: str) -> NDArray[np.float64]:
        column_I: NDArray[np.float64] = self.values_IM[:, MEASURES.index(measure)]
        return column_I


@dataclasses.dataclass(frozen=True)
class Quality:
    """Sources of masks on the same annotated images."""

    spec: str
    data_id: str
    names: tuple[str, ...]  # of the images
    sizes_I2: NDArray[np.int64]  # height, width
    sources: Mapping[str, Scores]  # the 5x5 grid is the last

    def size_bins(self) -> dict[str, NDArray[np.bool_]]:
        """Images by their number of pixels: small, medium, large."""
        pixels_I = self.sizes_I2.prod(axis=1)
        found, below = {}, 0
        for name, end in IMAGE_SIZES.items():
            end = np.iinfo(np.int64).max if end is None else end
            found[name] = (pixels_I >= below) & (pixels_I < end)
            below = end
        return found

    def cluster_bins(self, source: str) -> dict[str, NDArray[np.bool_]]:
        """Images by the K of their group: 1, 2-4, 5-8, 9-16, ..."""
        clusters_I = self.sources[source].clusters_I
        found, low = {}, 1
        for high in CLUSTERS:
            name = str(high) if low == high else f"{low}-{high}"
            found[name] = (clusters_I >= low) & (clusters_I <= high)
            low = high + 1
        return found

    def results(self) -> list[Result]:
        """One row for each measure and source, ``ari_kmeans_epoch_0006``; shares in percent.

        ``ari_equal_grid_kmeans_epoch_0006`` is that of grids with as many segments.
        """
        found = []
        for name, scores in self.sources.items():
            found += [self._result(measure, name, scores) for measure in REPORTED]
            if name != FLOOR:
                found.append(self._result("ari", f"equal_grid_{name}", scores.equal_grid))
        return found

    def _result(self, measure: str, name: str, scores: Scores) -> Result:
        return Result(
            task=TASK,
            metric=f"{measure}_{name}",
            value=scores.mean(measure) * (1 if measure in COUNTS else 100),
            unit="segments" if measure in COUNTS else "%",
            num_images=scores.num_images(measure),
            data_id=self.data_id,
            task_version=3,  # 1: the adjusted Rand index alone; 3: a 5x5 grid by centres of cells
        )


def quality_of(
    folders: Sequence[Path],
    spec: str,
    roots: DataRoots,
    *,
    masks_of: str = "",
    num_workers: int = 0,
) -> Quality:
    """Measure any stores on any labelled split.

    Args:
        folders: generations; all of the same images. One that is given twice counts once.
        spec: ``coco2017/val``, ``coco2017/val:segments`` (panoptic), ``voc2012/val`` ...
        masks_of: the images that the masks were made of, where these are not the split's own.

    Raises:
        MaskError: a folder holds no masks, or masks of other images.
        DataError: the split has no outlines of objects, or none in these images.
    """
    annotated = AnnotatedImages.load(spec, roots, masks_of)
    different: dict[Path, Path] = {}  # one store has several names, as by a link: the first stays
    for folder in folders:
        different.setdefault(folder.resolve(), folder)
    stores = named(MaskStore(folder, annotated.images_id) for folder in different.values())
    return measure(stores, annotated, roots, num_workers)


def named(stores: Iterable[MaskStore]) -> dict[str, MaskStore]:
    """Name stores by source and folder, ``kmeans_epoch_0006``; all of a second run in full.

    Raises:
        MaskError: a manifest has no source.
    """
    short = [(f"{source_of(store)}_{store.folder.name}", store) for store in stores]
    first: dict[str, Path] = {}
    for name, store in short:
        first.setdefault(name, store.folder.parent)
    second = {s.folder.parent for name, s in short if first[name] != s.folder.parent}
    return {
        f"{s.manifest['source']}_{s.folder}" if s.folder.parent in second else name: s
        for name, s in short
    }


def measure(
    stores: Mapping[str, MaskStore],
    annotated: AnnotatedImages,
    roots: DataRoots,
    num_workers: int = 0,
) -> Quality:
    """Compare every store, and the 5x5 grid, with every annotated image.

    Args:
        roots: where the annotations lie.
        num_workers: processes that help this one.
    """
    compared = made_ahead(_Comparison(stores), annotated.records, num_workers)
    rows = []
    with progress(len(annotated.records), "mask quality") as bar:
        for row in compared:
            rows.append(row)
            bar.advance()
    values_IS2M = np.array(rows)
    indices = [index for index, _ in annotated.records]
    sources = {}
    for number, name in enumerate((*stores, FLOOR)):
        store = stores.get(name)
        clusters = [GRID**2 if store is None else store.clusters(index) for index in indices]
        manifest = {"source": "grid"} if store is None else store.manifest
        values_I2M = values_IS2M[:, number]
        sources[name] = Scores(manifest, np.array(clusters), values_I2M[:, 0], values_I2M[:, 1])
    return Quality(
        spec=annotated.spec,
        data_id=content_id(annotated.spec, roots),
        names=tuple(annotated.images.name(index) for index in indices),
        sizes_I2=np.array([(record.height, record.width) for _, record in annotated.records]),
        sources=sources,
    )


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """Compares every store, and then the 5x5 grid, with an annotated image."""

    stores: Mapping[str, MaskStore]

    def __call__(self, item: tuple[int, Record | SegmentMap]) -> list[Floored]:
        return list(self._rows(*item))

    def _rows(self, index: int, record: Record | SegmentMap) -> Iterator[Floored]:
        annotated = Annotated.of(*regions(record))
        size = (record.height, record.width)
        for store in self.stores.values():
            _require_size(store, index, size, record.path)
            values = _values(store.read(index), annotated)
            segments = values[MEASURES.index("segments")]
            grid_hw = equal_grid(0 if math.isnan(segments) else int(segments), *size)
            yield values, _values(grid_hw, annotated)
        floor = _values(grid_labels(*size), annotated)
        yield floor, floor


def _values(labels_hw: NDArray[Any], annotated: Annotated) -> tuple[float, ...]:
    if not annotated.counted_HW.any():
        return (float("nan"),) * len(MEASURES)
    ours_HW = enlarge(labels_hw, *annotated.counted_HW.shape)
    return dataclasses.astuple(agreement(ours_HW, annotated))


def equal_grid(count: int, height: int, width: int) -> NDArray[np.int64]:
    """Grid of about ``count`` cells, as square as can be, at stride 8."""
    h, w = stored_size(height, width)
    rows = min(max(round(math.sqrt(count * height / width)), 1), h)
    columns = min(max(round(count / rows), 1), w)
    row_h, column_w = cell_of_pixels(h, rows), cell_of_pixels(w, columns)
    numbers_hw: NDArray[np.int64] = columns * row_h[:, None] + column_w
    return numbers_hw


def _require_size(store: MaskStore, index: int, size: tuple[int, int], path: Path) -> None:
    if store.image_size(index) != size:
        raise DataError(
            f"{store.folder} has masks for an image of {store.image_size(index)} (height, width) "
            f"in pixels, but the annotation of {path.name} says {size}: complete the data set"
        )
