"""Maps of several layers become one map of contrast cells (paper Eq. 5)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["average", "bilinear"]


def fuse(
    maps: Mapping[str, Tensor],
    layers: Sequence[str],
    grid: int,
    mode: Mode,
    *,
    normalise: bool = False,
) -> Tensor:
    """Resize the maps to grid x grid and concatenate their channels in the order of ``layers``.

    Args:
        maps: layer name -> (B, D, h, w).
        mode: how a finer map is reduced; a coarser one is always enlarged bilinearly. "average"
            sees every value, "bilinear" (antialiased) weighs them by a triangle.
        normalise: scale each layer's cells to unit length before they are joined.

    Returns:
        (B, sum of channels, grid, grid).
    """
    resized = [_resize(maps[layer], grid, mode) for layer in layers]
    if normalise:
        resized = [F.normalize(map_BDgg, dim=1) for map_BDgg in resized]
    return torch.cat(resized, dim=1)


def _resize(map_BDhw: Tensor, grid: int, mode: Mode) -> Tensor:
    height, width = map_BDhw.shape[-2:]
    if (height, width) == (grid, grid):
        return map_BDhw
    if height < grid or width < grid:
        return F.interpolate(map_BDhw, (grid, grid), mode="bilinear", align_corners=False)
    if mode == "average":
        return F.adaptive_avg_pool2d(map_BDhw, grid)
    return F.interpolate(
        map_BDhw, (grid, grid), mode="bilinear", align_corners=False, antialias=True
    )
