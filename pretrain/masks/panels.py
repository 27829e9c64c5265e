"""What is shown of an image side by side: every generation, plain and refined, and its objects."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from pretrain.masks.cells import enlarge
from pretrain.masks.colours import BARE, colour_numbers, numbers_by_area, numbers_by_overlap
from pretrain.masks.store import MaskError, MaskStore
from pretrain.masks.truth import AnnotatedImages, instance_map
from sslbench.datasets import (
    DataError,
    DataRoots,
    ImageList,
    Record,
    SegmentMap,
    decode_rgb,
    images_id,
    is_data_spec,
)
from sslbench.log import progress

if TYPE_CHECKING:
    # torch: not where only stores are shown
    from pretrain.masks.picture_features import PictureFeatures

TRUTH = "annotated objects"


@dataclass(frozen=True)
class Panel:
    """One label map, as colour numbers of pixels; ``BARE`` ones show the image."""

    title: str
    numbers_HW: np.ndarray

    @cached_property
    def num_segments(self) -> int:
        """Segments that are shown."""
        return len(set(np.unique(self.numbers_HW).tolist()) - {BARE})


@dataclass(frozen=True)
class Picture:
    """One image and its panels; a colour number means the same region in all of them."""

    name: str
    image_HW3: np.ndarray
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Shown:
    """Images to choose from, and the annotated objects of some."""

    images: ImageList
    records: Mapping[
        int, Record | SegmentMap
    ]  # place in the list -> its objects, where they have masks
    without: str = ""  # why there are none

    @classmethod
    def load(cls, spec: str, images: ImageList, roots: DataRoots) -> Self:
        """Look for objects with masks; pictures need none."""
        if not is_data_spec(spec):
            return cls(images, {})
        try:
            return cls.of(AnnotatedImages.load(spec, roots))
        except DataError as error:
            return cls(images, {}, str(error))

    @classmethod
    def of(cls, annotated: AnnotatedImages) -> Self:
        """Annotated images."""
        return cls(annotated.images, dict(annotated.records))

    def notes(self) -> list[str]:
        """Why a column is missing, if one is."""
        return [f"No annotated objects are shown: {self.without}."] if self.without else []

    def places_of(self, names: Sequence[str]) -> list[int]:
        """Images by their names, or by the file's alone where only one is called so.

        Raises:
            MaskError: there is none of a name, or several.
        """
        return [self._place_of(name) for name in names]

    def _place_of(self, name: str) -> int:
        known = self.images.names
        if name in known:
            return known.index(name)
        found = [place for place, full in enumerate(known) if full.endswith(f"/{name}")]
        if len(found) > 1:
            several = ", ".join(known[place] for place in found[:5])
            raise MaskError(f"--name {name}: {len(found)} images are called so: {several}")
        if not found:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0)
            raise MaskError(
                f"--name {name}: {self.images.base} has no such image; the nearest names are "
                f"{', '.join(near)}"
            )
        return found[0]

    def places(self, count: int) -> list[int]:
        """Some images, evenly spread over those with objects, or over all."""
        known = sorted(self.records) or range(len(self.images))
        spread = np.linspace(0, len(known) - 1, min(count, len(known)))
        return [known[place] for place in spread.round().astype(int)]


@dataclass(frozen=True)
class Wanted:
    """What is shown of each generation beside its mask.

    Args:
        checkpoints: none, one for all generations, or one for each.
    """

    crf: bool = False
    upsampled: bool = False
    checkpoints: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.upsampled and not self.checkpoints:
            raise MaskError(
                "upsampled features need the network they come from: add --checkpoint, for example "
                "RUN/checkpoints/epoch_0005.pt for RUN/masks/epoch_0006"
            )
        if self.checkpoints and not (self.crf or self.upsampled):
            raise MaskError(
                f"--checkpoint {self.checkpoints[0]} changes nothing by itself: add --crf or "
                "--upsampled, or leave it out"
            )

    def notes(self) -> list[str]:
        """How the further columns are made."""
        names = ", ".join(str(path) for path in self.checkpoints)
        unaries = f"the features of {names}" if names else "the stored labels alone"
        crf = f"CRF: a dense CRF over all pixels, its unaries from {unaries}."
        upsampled = (
            f"Features upsampled first: those of {names}, of the one image at half its resolution, "
            "in as many clusters as its mask has segments."
        )
        return [crf] * self.crf + [upsampled] * self.upsampled

    def features(self, stores: Mapping[str, MaskStore]) -> "dict[str, PictureFeatures]":
        """The features of each generation's checkpoint, by its title; none without checkpoints.

        Raises:
            MaskError: a checkpoint is not the one that its masks come from.
        """
        from pretrain.masks.picture_features import PictureFeatures

        given = self.checkpoints
        if len(given) not in (0, 1, len(stores)):
            raise MaskError(
                f"{len(given)} checkpoints for {len(stores)} stores: give one for all, or one for "
                "each in the same order"
            )
        paths = given if len(given) == len(stores) else given * len(stores)
        features = {
            title: PictureFeatures.load(path, store)
            for path, (title, store) in zip(paths, stores.items(), strict=False)
        }
        for title, made in features.items():
            if self.crf and made.metric != "cosine":
                raise MaskError(
                    f"--crf weighs labels by the cosine of features, but {title} was clustered by "
                    f"{made.metric} distance: leave --checkpoint out, and it goes by labels alone"
                )
        return features


def open_stores(paths: Sequence[Path], images: ImageList) -> dict[str, MaskStore]:
    """Open stores of the same images, by the titles of their columns.

    Raises:
        MaskError: one is broken or of other images.
    """
    identity = images_id(images)
    stores = [MaskStore(path, identity) for path in paths]
    names = [path.resolve().name for path in paths]
    sources = [str(store.manifest.get("source", "")) for store in stores]
    titles = [
        str(path) if names.count(name) > 1 else name if source in name else f"{source} {name}"
        for path, name, source in zip(paths, names, sources, strict=True)
    ]
    return dict(zip(titles, stores, strict=True))


def pictures(
    stores: Mapping[str, MaskStore], shown: Shown, places: Sequence[int], wanted: Wanted
) -> Iterator[Picture]:
    """The images at some places of the list, one after the other.

    Raises:
        MaskError: a map was made for an image of another size.
    """
    features = wanted.features(stores)
    with progress(len(places), "pictures") as bar:
        for index in places:
            name = shown.images.name(index)
            image_HW3 = decode_rgb(shown.images.read(index), name)
            views = {
                title: _View(store, shown.images, index, image_HW3, features.get(title))
                for title, store in stores.items()
            }
            panels = tuple(_panels(views, wanted, shown.records.get(index)))
            yield Picture(name, image_HW3, panels)
            bar.advance()


@dataclass(frozen=True)
class _View:
    """One image in one generation."""

    store: MaskStore
    images: ImageList
    index: int
    image_HW3: np.ndarray
    features: "PictureFeatures | None"

    @cached_property
    def labels_hw(self) -> np.ndarray:
        size, made_for = self.image_HW3.shape[:2], self.store.image_size(self.index)
        if size != made_for:
            raise MaskError(
                f"{self.images.name(self.index)} is {size[0]}x{size[1]} pixels, its masks in "
                f"{self.store.folder} were made for {made_for[0]}x{made_for[1]}. Bring the old "
                "image back, or start a new run folder"
            )
        return self.store.read(self.index)

    def refined(self) -> np.ndarray:
        """Labels of the pixels after the CRF: by features where there are any."""
        from pretrain.masks.crf_pixels import refine_by_features, refine_by_labels

        if self.features is None:
            return refine_by_labels(self.labels_hw, self.image_HW3)
        points_ND = self.features.of_cells(self.image_HW3)
        prototypes_KD = self.features.prototypes(self.store, self.images, self.index)
        return refine_by_features(self.labels_hw, points_ND, prototypes_KD, self.image_HW3)

    def upsampled(self) -> np.ndarray:
        """Labels of the pixels by features that are upsampled before they are clustered."""
        from pretrain.masks.upsampled import upsampled_labels

        assert self.features is not None, "Wanted refuses this"
        num_clusters = len(np.unique(self.labels_hw))
        seed = self.store.manifest.get("seed", 0)
        return upsampled_labels(self.features, self.image_HW3, num_clusters, seed, self.index)


def _panels(
    views: Mapping[str, _View], wanted: Wanted, record: Record | SegmentMap | None
) -> Iterator[Panel]:
    before_HW, fresh = None, 0  # the first number that no panel of the row has
    for title, view in views.items():
        made = list(_of_generation(title, view, before_HW, fresh, wanted))
        before_HW = made[0].numbers_HW
        fresh = max(fresh, *(int(panel.numbers_HW.max()) + 1 for panel in made))
        yield from made
    if record is not None and before_HW is not None:
        yield _truth(record, before_HW, fresh)


def _of_generation(
    title: str, view: _View, before_HW: np.ndarray | None, fresh: int, wanted: Wanted
) -> Iterator[Panel]:
    labels_HW = enlarge(view.labels_hw, *view.image_HW3.shape[:2])
    if before_HW is None:
        numbers = numbers_by_area(labels_HW)
    else:
        numbers = numbers_by_overlap(labels_HW, before_HW, fresh)
    plain_HW = colour_numbers(labels_HW, numbers)
    yield Panel(title, plain_HW)
    if wanted.crf:
        yield Panel(f"{title} + CRF", colour_numbers(view.refined(), numbers))
    if wanted.upsampled:
        finer_HW = view.upsampled()
        numbers = numbers_by_overlap(finer_HW, plain_HW, fresh)
        yield Panel(f"{title}, features upsampled first", colour_numbers(finer_HW, numbers))


def _truth(record: Record | SegmentMap, before_HW: np.ndarray, fresh: int) -> Panel:
    """Objects take the colours of the segments they lie in; all else is bare."""
    objects_HW = instance_map(record)
    inside_HW = objects_HW > 0
    if not inside_HW.any():  # hidden by crowds, or smaller than a pixel
        return Panel(TRUTH, np.full(objects_HW.shape, BARE))
    numbers = numbers_by_overlap(objects_HW[inside_HW], before_HW[inside_HW], fresh)
    return Panel(TRUTH, colour_numbers(objects_HW, numbers))
