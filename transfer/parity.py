"""Converted weights must give the detector's trunk the very maps of the original trunk.

Fixed pictures go as files through both sides: ours decodes to RGB and uses the canonical trunk; the
other reads them in the detector's channel order, subtracts its pixel means and runs the written
weights in Detectron2's own network, or in an independent trunk where Detectron2 is not installed.
Wrong names, strides, channel order, mean or std all show as a difference.

Shape letters: B images, C channels, H x W pixels.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslbench.checkpoint import Backbone
from sslbench.datasets import decode_rgb
from sslbench.resnet import LAYERS, PIXEL_MEAN, PIXEL_STD
from sslbench.rng import numpy_generator
from transfer.detectron2_names import HOMES, has_own_head, misnamed
from transfer.detectron2_trunk import Detectron2Trunk
from transfer.layouts import AnyLayout
from transfer.naming import STAGES, Layout
from transfer.task import has_detectron2
from transfer.weights import WeightsError, load_weights

TOLERANCE, GOAL = 1e-4, 1e-5  # of max|a - b| / max|reference|
NUM_IMAGES, HEIGHT, WIDTH = 2, 192, 256


class ParityError(ValueError):
    """The written weights do not reproduce the maps of the checkpoint they came from."""


@dataclass(frozen=True)
class Difference:
    """How far one level of the detector's trunk is from the original."""

    absolute: float  # max|a - b|
    reference: float  # max|original|

    @property
    def relative(self) -> float:
        return self.absolute / self.reference if self.reference > 0 else self.absolute


def check_parity(backbone: Backbone, weights_path: Path, layout: AnyLayout) -> dict[str, Any]:
    """Compare ``res2`` to ``res5`` and return the record of the comparison.

    Raises:
        ParityError: a level differs by more than the tolerance, or a weight was not loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_pictures(Path(folder))
        ours = canonical_maps(backbone, pictures)
        _require_finite(backbone, ours)
        reference, theirs = detector_maps(backbone, weights_path, layout, pictures)
    found = compare(ours, theirs)
    record = {
        "layout": layout,
        "reference": reference,
        "tolerance": TOLERANCE,
        "goal": GOAL,
        "levels": {
            level: {
                "max_abs_difference": d.absolute,
                "max_abs_original": d.reference,
                "relative": d.relative,
            }
            for level, d in found.items()
        },
        "images": {"number": NUM_IMAGES, "height": HEIGHT, "width": WIDTH},
    }
    wrong = {level: d.relative for level, d in found.items() if not d.relative <= TOLERANCE}
    if wrong:
        shown = ", ".join(f"{level} {relative:.1e}" for level, relative in wrong.items())
        raise ParityError(
            f"{weights_path}: the {layout} trunk in {reference} differs from {backbone.source} by "
            f"more than {TOLERANCE:g} of the largest value ({shown}). Do not train from this file; "
            "the checkpoint may need another channel order, normalisation or stride"
        )
    return record


def _require_finite(backbone: Backbone, maps: Mapping[str, Tensor]) -> None:
    broken = [level for level, map_BCHW in maps.items() if not torch.isfinite(map_BCHW).all()]
    if broken:
        raise ParityError(
            f"{backbone.source}: its own trunk gives values in {', '.join(broken)} that are not "
            "finite, for ordinary pictures; these are no trained network's weights, or its "
            "training diverged. Take an earlier checkpoint"
        )


def write_pictures(folder: Path) -> list[Path]:
    """Write the fixed pictures: coloured waves with noise, different in every channel."""
    from PIL import Image

    generator = numpy_generator(0, "parity pictures")
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    paths = []
    for index in range(NUM_IMAGES):
        channels = []
        for channel in range(3):
            frequency = generator.uniform(0.02, 0.15, size=2)
            wave = np.sin(rows * frequency[0] + columns * frequency[1] + channel)
            noise = generator.normal(0, 20, size=rows.shape)
            channels.append(90 + 40 * channel + 60 * wave + noise)
        pixels = np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)
        paths.append(folder / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@torch.no_grad()
def canonical_maps(backbone: Backbone, pictures: list[Path]) -> dict[str, Tensor]:
    """Compute the original trunk's maps, named as the detector names them."""
    rgb = [torch.tensor(decode_rgb(p.read_bytes(), p.name)) for p in pictures]
    images_BCHW = torch.stack(rgb).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    maps = backbone.build().maps((images_BCHW - mean) / std, LAYERS)
    return {STAGES[layer]: value for layer, value in maps.items()}


def detector_maps(
    backbone: Backbone, weights_path: Path, layout: AnyLayout, pictures: list[Path]
) -> tuple[str, dict[str, Tensor]]:
    """Compute the maps of the written weights; also say what computed them."""
    from transfer import detectron2_parity, torchvision_parity

    if layout == "torchvision":
        return torchvision_parity.maps(weights_path, pictures)
    depth, width = backbone.depth, backbone.width
    own = has_own_head(layout, depth) and detectron2_parity.can_build(depth, width)
    if own and has_detectron2():
        return detectron2_parity.maps(backbone, weights_path, layout, pictures)
    arrays, metadata = load_weights(weights_path)
    _require_names({n: v.shape for n, v in arrays.items()}, backbone, layout)
    trunk, last_stage = HOMES[layout]
    network = Detectron2Trunk(
        arrays,
        trunk=trunk,
        last_stage=last_stage,
        pixel_mean=tuple(metadata["pixel_mean"]),
        pixel_std=tuple(metadata["pixel_std"]),
        stride_in_1x1=metadata["stride_in_1x1"],
    )
    return "independent trunk", network.maps(read_images(pictures, metadata["format"]))


def _require_names(shapes: dict[str, tuple[int, ...]], backbone: Backbone, layout: Layout) -> None:
    """Compare with the names that Detectron2 itself gave: it only logs what it cannot match."""
    unknown, missing = misnamed(shapes, layout, backbone.depth, backbone.width)
    if unknown or missing:
        raise WeightsError(
            f"Detectron2 would not take {len(unknown)} of the written weights (e.g. {unknown[:3]}) "
            f"and {len(missing)} of its {layout} trunk's were not written (e.g. {missing[:3]})"
        )


def read_images(pictures: list[Path], channel_order: str) -> Tensor:
    """Read pictures as a detector does: B x 3 x H x W bytes, channels as ``RGB`` or ``BGR``."""
    order = slice(None) if channel_order == "RGB" else slice(None, None, -1)
    stacked = np.stack([_read_png(p)[:, :, order] for p in pictures])
    return torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)))


def _read_png(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def compare(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Difference]:
    """Measure every level; a difference of shape or a NaN counts as infinitely far."""
    found = {}
    for level, expected in ours.items():
        got = theirs[level]
        same_shape = got.shape == expected.shape
        absolute = (got - expected).abs().max().item() if same_shape else float("inf")
        # max() of NaN is NaN, which no comparison would call too large
        absolute = absolute if absolute == absolute else float("inf")
        found[level] = Difference(absolute, expected.abs().max().item())
    return found
