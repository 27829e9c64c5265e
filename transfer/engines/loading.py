"""Converted weights go into a detector by exact name, or not at all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from transfer.convert import rescaling_note
from transfer.engines.recipe import Recipe
from transfer.weights import Arrays, WeightsError, load_weights


@dataclass(frozen=True)
class Weights:
    """Converted weights under Detectron2's names, with what they say about themselves."""

    arrays: Arrays
    layout: str
    depth: int
    width: float
    path: Path
    notes: tuple[str, ...] = ()  # what must stand beside every number, wherever the file came from

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``python -m transfer convert`` wrote."""
        arrays, metadata = load_weights(path)
        rescale = metadata.get("rescale")
        notes = (rescaling_note(rescale.get("constant")),) if rescale else ()
        try:
            layout, depth, width = (metadata[name] for name in ("layout", "depth", "width"))
            return cls(arrays, layout, depth, width, path, notes)
        except KeyError as error:
            raise WeightsError(
                f"{path} does not say its {error.args[0]}; convert the checkpoint again"
            ) from None

    def require_fit(self, layout: str, recipe: Recipe) -> None:
        """Raise ``WeightsError`` unless layout, depth and width are what the recipe builds."""
        if self.layout != layout:
            raise WeightsError(
                f"{self.path} was converted for layout {self.layout!r}, the task needs {layout!r}; "
                f"convert the checkpoint with layout={layout}"
            )
        if self.depth != recipe["MODEL.RESNETS.DEPTH"]:
            raise WeightsError(
                f"{self.path} holds a ResNet-{self.depth}, {recipe.name} builds a "
                f"ResNet-{recipe['MODEL.RESNETS.DEPTH']}; leave MODEL.RESNETS.DEPTH to the weights"
            )
        if self.width != recipe.width:
            raise WeightsError(
                f"{self.path} holds a ResNet of width {self.width:g}, {recipe.name} builds width "
                f"{recipe.width:g}; leave the widths of MODEL.RESNETS to the weights"
            )


def load_exactly(
    model: nn.Module,
    trunk: Mapping[str, Tensor],
    is_trunk: Callable[[str], bool],
    path: Path,
) -> tuple[str, ...]:
    """Copy ``trunk`` into the model; return the model's tensors that stay fresh (its heads).

    Args:
        trunk: tensors under the model's own names.
        is_trunk: whether a tensor of the model must come from the weights.

    Raises:
        WeightsError: a tensor has no place or another shape, or a part of the trunk got none.
    """
    state = model.state_dict()
    problems = [f"{name}: the detector has no such tensor" for name in trunk if name not in state]
    problems += [
        f"{name}: {tuple(tensor.shape)}, the detector has {tuple(state[name].shape)}"
        for name, tensor in trunk.items()
        if name in state and state[name].shape != tensor.shape
    ]
    fresh = [n for n in state if n not in trunk and not n.endswith("num_batches_tracked")]
    problems += [f"{name}: no weights for it" for name in fresh if is_trunk(name)]
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:8])
        more = f"\n  ... and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise WeightsError(f"{path} does not fit the detector:\n{shown}{more}")
    model.load_state_dict(dict(trunk), strict=False)
    return tuple(fresh)


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Copies of the arrays as tensors."""
    return {name: torch.tensor(value) for name, value in arrays.items()}
