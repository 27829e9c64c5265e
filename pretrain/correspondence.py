"""Which cell of one view shows what a cell of another view shows: crop boxes and flips decide.

Shape letters: B images, P = h*w cells of a map.
"""

import torch
from torch import Tensor

OUTSIDE = -1


def corresponding_cells(
    from_box_B4: Tensor,
    from_flip_B: Tensor,
    to_box_B4: Tensor,
    to_flip_B: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """Find, for every cell centre of one view, the cell of the other view that contains it.

    Args:
        from_box_B4, to_box_B4: float64 crop boxes (x0, y0, width, height) in pixels of the image.
        from_flip_B, to_flip_B: bool, mirrored left to right after the crop.
        size: (h, w) of the maps.

    Returns:
        int64 (B, P), row-major index into the other map, or -1 where the views do not overlap.
    """
    height, width = size
    device = from_box_B4.device
    v_P = (torch.arange(height, device=device, dtype=torch.float64) + 0.5) / height
    u_P = (torch.arange(width, device=device, dtype=torch.float64) + 0.5) / width
    v_P, u_P = (axis.flatten() for axis in torch.meshgrid(v_P, u_P, indexing="ij"))

    u_BP = torch.where(from_flip_B[:, None], 1 - u_P, u_P)
    x_BP = from_box_B4[:, 0:1] + u_BP * from_box_B4[:, 2:3]
    y_BP = from_box_B4[:, 1:2] + v_P * from_box_B4[:, 3:4]

    u_BP = (x_BP - to_box_B4[:, 0:1]) / to_box_B4[:, 2:3]
    v_BP = (y_BP - to_box_B4[:, 1:2]) / to_box_B4[:, 3:4]
    inside_BP = (u_BP >= 0) & (u_BP < 1) & (v_BP >= 0) & (v_BP < 1)
    u_BP = torch.where(to_flip_B[:, None], 1 - u_BP, u_BP)
    column_BP = (u_BP * width).floor().long().clamp(0, width - 1)
    row_BP = (v_BP * height).floor().long().clamp(0, height - 1)
    return torch.where(inside_BP, row_BP * width + column_BP, OUTSIDE)
