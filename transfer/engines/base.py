"""What the trainer and the evaluation ask of a detection engine.

Shape letters: N objects, 4 = (x0, y0, x1, y1) in pixels of the original image, x1 and y1 exclusive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from sslbench.datasets import Record


@dataclass(frozen=True)
class Draw:
    """Identity of one training sample: what its augmentation is drawn from."""

    seed: int
    iteration: int
    slot: int  # position in the batch


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image."""

    boxes_N4: np.ndarray  # float32
    scores_N: np.ndarray  # float32, falling
    classes_N: np.ndarray  # int64, contiguous class index
    masks: tuple[dict[str, Any], ...] | None  # COCO RLE per object; None for a box detector


class Mapper(Protocol):
    """Turns a record into the engine's own sample; runs in loader processes."""

    def train(self, record: Record, draw: Draw) -> Any:
        """Read, augment by ``draw``, and attach targets."""

    def test(self, record: Record) -> Any:
        """Read at the test resolution, without targets."""


class Engine(Protocol):
    """A detector with its way of reading and predicting."""

    name: str
    model: nn.Module
    mapper: Mapper
    fresh: tuple[str, ...]  # parameters and buffers that did not come from the weights: the heads

    def losses(self, batch: Sequence[Any]) -> dict[str, Tensor]:
        """Named loss terms of training samples; the model is in training mode."""

    def predict(self, batch: Sequence[Any]) -> list[Detections]:
        """Detections of test samples, best first; the model is in evaluation mode."""
