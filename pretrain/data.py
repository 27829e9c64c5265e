"""Images -> batches of views. Nothing here depends on the rank, the worker or a restart.

The order of an epoch comes from (seed, epoch), a view's augmentation from (seed, epoch, image,
view).

Shape letters: B images of this process, S pixels along a crop's side, R sampled masks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pretrain import photometry
from pretrain.losses.clustering import Geometry
from pretrain.masks.store import MaskStore
from pretrain.views import Interpolation, cut_image, cut_labels, draw_crop
from sslbench import dist
from sslbench.datasets import DataError, ImageList, decode_rgb
from sslbench.loading import start_loading
from sslbench.rng import numpy_generator


@dataclass(frozen=True)
class View:
    """One view of each image of a batch."""

    images_B3SS: Tensor  # uint8 from the loader; augmented, normalised float32 for the method
    labels_BSS: Tensor | None  # uint8 mask ids; None before there are masks
    geometry: Geometry
    draws: photometry.Draws
    uniforms_BR: Tensor  # float64 in [0, 1), for the method's own draws per image

    def __getitem__(self, images: slice) -> "View":
        """The view of some images."""
        return View(
            images_B3SS=self.images_B3SS[images],
            labels_BSS=None if self.labels_BSS is None else self.labels_BSS[images],
            geometry=self.geometry[images],
            draws=self.draws[images],
            uniforms_BR=self.uniforms_BR[images],
        )


@dataclass(frozen=True)
class Batch:
    """What this process sees of one step, or a part of it that fits into memory."""

    step: int  # counts from 0 over the whole run
    indices_B: Tensor  # rank of each image in the sorted list
    views: tuple[View, ...]
    first: int = 0  # place of a part's first image among the process's images of the step

    @property
    def images(self) -> slice:
        """Place of the part among the process's images of the step."""
        return slice(self.first, self.first + len(self.indices_B))

    def updates(self, count: int) -> "list[Batch]":
        """Share the views out to ``count`` updates."""
        size = len(self.views) // count
        starts = range(0, count * size, size)
        return [replace(self, views=self.views[start : start + size]) for start in starts]

    def parts(self, count: int) -> "list[Batch]":
        """Cut into equal parts, one after the other."""
        size = len(self.indices_B) // count
        places = [slice(start, start + size) for start in range(0, count * size, size)]
        return [
            Batch(
                self.step, self.indices_B[place], tuple(v[place] for v in self.views), place.start
            )
            for place in places
        ]


@dataclass(frozen=True)
class ViewSpec:
    """What a method asks of the loader."""

    recipes: tuple[photometry.Recipe, ...]  # one per view
    crop_size: int
    num_uniforms: int  # per view and image
    interpolation: Interpolation = "bicubic"
    saturated: photometry.Saturation = "multiplied"

    def times(self, count: int) -> "ViewSpec":
        """Ask for the views of ``count`` updates, one after the other."""
        return replace(self, recipes=self.recipes * count)


@dataclass(frozen=True)
class _Item:
    """One view of one image, in a worker."""

    pixels_3SS: Tensor
    labels_SS: np.ndarray | None
    box: tuple[int, int, int, int]
    flip: bool
    draws: photometry.Draws
    uniforms_R: np.ndarray


class ViewDataset(Dataset[tuple[int, list[_Item]] | DataError]):
    """Views of single images for one epoch.

    An image that cannot be used is an error that is returned: one that is raised in a worker would
    reach the user as a traceback.
    """

    def __init__(
        self, images: ImageList, masks: MaskStore | None, spec: ViewSpec, seed: int, epoch: int
    ) -> None:
        self.images, self.masks, self.spec = images, masks, spec
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, list[_Item]] | DataError:
        try:
            return index, self._views(index)
        except DataError as error:
            return error

    def _views(self, index: int) -> list[_Item]:
        image_HW3 = decode_rgb(self.images.read(index), self.images.name(index))
        if self.masks is not None and self.masks.image_size(index) != image_HW3.shape[:2]:
            raise DataError(
                f"{self.images.name(index)}: the image is {image_HW3.shape[:2]} (height, width) "
                f"but its mask was made for {self.masks.image_size(index)}; it changed since"
            )
        views = range(len(self.spec.recipes))
        return [self._view(image_HW3, index, view) for view in views]

    def _view(self, image_HW3: np.ndarray, index: int, view: int) -> _Item:
        generator = numpy_generator(self.seed, "view", self.epoch, index, view)
        crop = draw_crop(generator, *image_HW3.shape[:2])
        size, labels_SS = self.spec.crop_size, None
        if self.masks is not None:
            labels_SS = cut_labels(self.masks.read(index), image_HW3.shape[:2], crop, size)
        return _Item(
            pixels_3SS=cut_image(image_HW3, crop, size, self.spec.interpolation),
            labels_SS=labels_SS,
            box=crop.box(),
            flip=crop.flip,
            draws=photometry.Draws.draw(generator, self.spec.recipes[view]),
            uniforms_R=generator.random(self.spec.num_uniforms),
        )


def _collate(items: Sequence[tuple[int, list[_Item]] | DataError]) -> Batch | DataError:
    usable = [item for item in items if not isinstance(item, DataError)]
    if len(usable) < len(items):
        return next(item for item in items if isinstance(item, DataError))
    indices = torch.tensor([index for index, _ in usable])
    views = zip(*(parts for _, parts in usable), strict=True)
    return Batch(step=-1, indices_B=indices, views=tuple(_join(list(view)) for view in views))


def _join(items: list[_Item]) -> View:
    labels = [item.labels_SS for item in items if item.labels_SS is not None]
    return View(
        images_B3SS=torch.stack([item.pixels_3SS for item in items]),
        labels_BSS=torch.from_numpy(np.stack(labels)) if labels else None,
        geometry=Geometry(
            box_B4=torch.tensor([item.box for item in items], dtype=torch.float64),
            flip_B=torch.tensor([item.flip for item in items]),
        ),
        draws=photometry.Draws.stack([item.draws for item in items]),
        uniforms_BR=torch.from_numpy(np.stack([item.uniforms_R for item in items])),
    )


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches in an epoch; the rest of the images wait for another epoch."""
    if num_images < batch_size:
        raise DataError(
            f"{num_images} images do not fill one batch of {batch_size}; "
            "add images or set batch_size to at most that"
        )
    return num_images // batch_size


def epoch_order(num_images: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Image indices of an epoch, (steps, batch_size): each image at most once."""
    steps = steps_per_epoch(num_images, batch_size)
    order = numpy_generator(seed, "order", epoch).permutation(num_images)
    return order[: steps * batch_size].reshape(steps, batch_size)


def rank_share(order: np.ndarray) -> np.ndarray:
    """Columns of an epoch's order that belong to this process."""
    if order.shape[1] % dist.world_size():
        raise DataError(
            f"batch_size {order.shape[1]} is not divisible by {dist.world_size()} processes"
        )
    share = order.shape[1] // dist.world_size()
    return order[:, dist.rank() * share : (dist.rank() + 1) * share]


def make_loader(
    images: ImageList,
    masks: MaskStore | None,
    spec: ViewSpec,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    first_step: int = 0,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Start serving the batches of one epoch, from ``first_step`` on.

    Args:
        batch_size: over all processes.
        epoch: from 1; 0 serves the calibration before the first epoch.

    Raises:
        DataError: while serving: an image cannot be read or does not fit its masks.
    """
    order = rank_share(epoch_order(len(images), batch_size, seed, epoch))
    batches = start_loading(
        ViewDataset(images, masks, spec, seed, epoch),
        batch_sampler=order[first_step:].tolist(),
        num_workers=num_workers,
        collate_fn=_collate,
    )
    return map(_usable, batches)


def _usable(batch: Batch | DataError) -> Batch:
    if isinstance(batch, DataError):
        raise batch
    return batch


def to_device(
    batch: Batch, step: int, device: torch.device, saturated: photometry.Saturation = "multiplied"
) -> Batch:
    """Move a batch to the device and give its views their appearance there."""
    views = tuple(_view_to(view, device, saturated) for view in batch.views)
    return replace(batch, step=step, indices_B=batch.indices_B.to(device), views=views)


def _view_to(view: View, device: torch.device, saturated: photometry.Saturation) -> View:
    images = photometry.apply(view.images_B3SS.to(device), view.draws.to(device), saturated)
    labels = view.labels_BSS
    return View(
        images_B3SS=images.contiguous(memory_format=torch.channels_last),
        labels_BSS=None if labels is None else labels.to(device),
        geometry=Geometry(view.geometry.box_B4.to(device), view.geometry.flip_B.to(device)),
        draws=view.draws,
        uniforms_BR=view.uniforms_BR.to(device),
    )
