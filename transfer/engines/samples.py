"""Images and targets of the torchvision engine: Detectron2's default augmentation.

Shape letters: H x W pixels, N objects.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslbench.datasets import DataError, Object, Record, decode_rgb
from sslbench.rng import numpy_generator
from transfer.engines.base import Draw
from transfer.engines.masks import Shape, rasterise, valid_polygons
from transfer.engines.recipe import Recipe


@dataclass(frozen=True)
class Sample:
    """One image as the detector sees it, with the size its predictions must be scaled back to."""

    image_3HW: Tensor  # uint8
    height: int
    width: int
    boxes_N4: Tensor | None = None
    classes_N: Tensor | None = None
    shapes_N: tuple[Shape, ...] | None = None


def resized_shape(height: int, width: int, short_side: int, max_size: int) -> tuple[int, int]:
    """Height and width with the shorter side ``short_side``, the longer at most ``max_size``."""
    scale = short_side / min(height, width)
    scaled = [float(height) * scale, float(width) * scale]
    if max(scaled) > max_size:
        scaled = [side * max_size / max(scaled) for side in scaled]
    return int(scaled[0] + 0.5), int(scaled[1] + 0.5)


def learnable(record: Record, *, with_masks: bool) -> tuple[Object, ...]:
    """Objects that a detector is taught, with the polygons that are any: no crowds.

    As in Detectron2's reader an object whose polygons all have less than three points is left out.

    Raises:
        DataError: masks are wanted and an object has no outline at all.
    """
    objects = [item for item in record.objects if not item.crowd]
    if not with_masks:
        return tuple(objects)
    kept = []
    for item in objects:
        if not item.segmentation:
            raise DataError(
                f"{record.path} has an object without segmentation; masks cannot be learned from it"
            )
        if isinstance(item.segmentation, list):
            item = replace(item, segmentation=valid_polygons(item.segmentation))
        if item.segmentation:
            kept.append(item)
    return tuple(kept)


class SampleMapper:
    """Record -> ``Sample``.

    Args:
        recipe: resolution, flip and whether masks are wanted.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.train_sizes: tuple[int, ...] = recipe["INPUT.MIN_SIZE_TRAIN"]
        self.train_max: int = recipe["INPUT.MAX_SIZE_TRAIN"]
        self.test_size: int = recipe["INPUT.MIN_SIZE_TEST"]
        self.test_max: int = recipe["INPUT.MAX_SIZE_TEST"]
        self.flips: bool = recipe["INPUT.RANDOM_FLIP"] == "horizontal"
        self.with_masks: bool = recipe["MODEL.MASK_ON"]

    def train(self, record: Record, draw: Draw) -> Sample:
        """Read and augment one image; see ``Mapper``."""
        generator = numpy_generator(draw.seed, "augment", draw.iteration, draw.slot)
        short_side = self.train_sizes[generator.integers(len(self.train_sizes))]
        flip = self.flips and bool(generator.random() < 0.5)
        shape = resized_shape(record.height, record.width, short_side, self.train_max)
        image = self._read(record, shape)
        if flip:
            image = image[:, ::-1]
        return Sample(_channels_first(image), *shape, **self._targets(record, shape, flip))

    def test(self, record: Record) -> Sample:
        """Read one image at the test resolution; see ``Mapper``."""
        shape = resized_shape(record.height, record.width, self.test_size, self.test_max)
        return Sample(_channels_first(self._read(record, shape)), record.height, record.width)

    @staticmethod
    def _read(record: Record, shape: tuple[int, int]) -> np.ndarray:
        pixels = decode_rgb(record.path.read_bytes(), str(record.path))
        height, width = pixels.shape[:2]
        if (height, width) != (record.height, record.width):  # its boxes would lie elsewhere
            raise DataError(
                f"{record.path} is {width} x {height} pixels, its annotations say "
                f"{record.width} x {record.height}; restore the image or its annotations"
            )
        resized = Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BILINEAR)
        return np.asarray(resized)

    def _targets(self, record: Record, shape: tuple[int, int], flip: bool) -> dict[str, Any]:
        objects = learnable(record, with_masks=self.with_masks)
        # in float64 to the end: a box that leaves its own outline by a rounding error cuts another
        # mask from it than Detectron2's
        scale = np.array([shape[1] / record.width, shape[0] / record.height] * 2)
        boxes_N4 = np.array([item.box for item in objects], np.float64).reshape(-1, 4) * scale
        if flip:
            boxes_N4[:, [0, 2]] = shape[1] - boxes_N4[:, [2, 0]]
        boxes_N4 = boxes_N4.clip(0, np.array([shape[1], shape[0]] * 2)).astype(np.float32)
        kept = np.flatnonzero(((boxes_N4[:, 2:] - boxes_N4[:, :2]) > 1e-5).all(axis=1))
        targets: dict[str, Any] = {
            "boxes_N4": torch.from_numpy(boxes_N4[kept]),
            "classes_N": torch.tensor([objects[i].category for i in kept], dtype=torch.int64),
        }
        if self.with_masks:
            targets["shapes_N"] = tuple(
                _shape(objects[i].segmentation, record, shape, flip) for i in kept
            )
        return targets


def _shape(segmentation: Any, record: Record, shape: tuple[int, int], flip: bool) -> Shape:
    """An object at the augmented size: polygons are scaled exactly, an RLE is resampled."""
    if isinstance(segmentation, dict):
        where = f"an object of {record.path}"
        mask = Image.fromarray(rasterise(segmentation, record.height, record.width, where))
        pixels = np.asarray(mask.resize(shape[::-1], Image.Resampling.NEAREST))
        return np.ascontiguousarray(pixels[:, ::-1] if flip else pixels)
    scale = np.array([shape[1] / record.width, shape[0] / record.height])
    polygons = [np.asarray(points, np.float64).reshape(-1, 2) * scale for points in segmentation]
    if flip:
        polygons = [np.array([shape[1], 0]) + points * [-1, 1] for points in polygons]
    return tuple(points.ravel() for points in polygons)


def _channels_first(pixels_HW3: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels_HW3.transpose(2, 0, 1)))
