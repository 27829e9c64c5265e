"""Maps of a trunk on the fixed pictures: of the checkpoint, and of the weights as a detector sees.

The independent trunk computes the detector's side here, for it can be given any treatment.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from transfer.detectron2_trunk import Detectron2Trunk
from transfer.parity import TOLERANCE, compare, read_images, write_pictures
from transfer.verify.detector_file import Treatment

Maps = Mapping[str, Tensor]  # res2 to res5


@contextmanager
def fixed_pictures() -> Iterator[list[Path]]:
    """The pictures of the parity check, as files."""
    with tempfile.TemporaryDirectory() as folder:
        yield write_pictures(Path(folder))


def trunk_maps(trunk: Mapping[str, Tensor], treatment: Treatment, pictures: list[Path]) -> Maps:
    """Compute the maps of a trunk under bare names."""
    network = Detectron2Trunk(
        {name: value.numpy() for name, value in trunk.items()},
        trunk="",
        last_stage="res5.",
        pixel_mean=treatment.mean,
        pixel_std=treatment.std,
        stride_in_1x1=treatment.stride_in_1x1,
    )
    return network.maps(read_images(pictures, treatment.channel_order))


def relative(right: Maps, other: Maps) -> dict[str, float]:
    """max|a - b| / max|right| of every level."""
    return {level: found.relative for level, found in compare(right, other).items()}


def equal(levels: Mapping[str, float]) -> bool:
    """Whether every level is within the tolerance; NaN is not."""
    return all(value <= TOLERANCE for value in levels.values())


@dataclass(frozen=True)
class Sides:
    """A trunk, how it is treated, and the maps that it should give."""

    trunk: Mapping[str, Tensor]
    treatment: Treatment
    right: Maps

    def levels(self, pictures: list[Path]) -> dict[str, float]:
        return relative(self.right, trunk_maps(self.trunk, self.treatment, pictures))
