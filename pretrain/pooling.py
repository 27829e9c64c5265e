"""Masks as cells: majority labels, sampled mask ids, and features averaged over masks (Eq. 1).

Shape letters: B images, H x W pixels, g cells along a side, C = g*g cells, I ids, R sampled masks,
D channels.
"""

import torch
from torch import Tensor

NUM_IDS = 256  # a label is one byte


def majority_labels(labels_BHW: Tensor, grid: int) -> Tensor:
    """Give every cell its most frequent label; of equally frequent ones the smallest.

    Counts with one ``bincount``; a (B, ids, H, W) tensor is never made.

    Args:
        labels_BHW: integers in [0, 256).
        grid: cells along a side; divides H and W.

    Returns:
        int64 (B, grid, grid).
    """
    images, height, width = labels_BHW.shape
    if height % grid or width % grid:
        raise ValueError(f"a {height}x{width} label map has no {grid}x{grid} grid of equal cells")
    cells = labels_BHW.reshape(images, grid, height // grid, grid, width // grid)
    cells = cells.permute(0, 1, 3, 2, 4).reshape(images * grid * grid, -1).long()
    bins = cells + torch.arange(len(cells), device=cells.device)[:, None] * NUM_IDS
    counts = torch.bincount(bins.flatten(), minlength=len(cells) * NUM_IDS)
    return counts.view(-1, NUM_IDS).argmax(dim=1).view(images, grid, grid)  # argmax: the first one


def present_ids(cells_Bgg: Tensor) -> Tensor:
    """Mark the ids that own at least one cell: bool (B, 256)."""
    images = len(cells_Bgg)
    present = torch.zeros(images, NUM_IDS, dtype=torch.bool, device=cells_Bgg.device)
    return present.scatter_(1, cells_Bgg.reshape(images, -1), True)


def sample_ids(cells_Bgg: Tensor, uniforms_BR: Tensor) -> Tensor:
    """Pick mask ids with replacement, uniformly among those present in each image.

    Args:
        cells_Bgg: cell labels of one view.
        uniforms_BR: random numbers in [0, 1), drawn per image so that the batch does not matter.

    Returns:
        int64 (B, R). The online and the target pass of a view share it.
    """
    rank_BI = present_ids(cells_Bgg).cumsum(dim=1)  # 1 for the first id present, 2 for the next
    num_present_B1 = rank_BI[:, -1:]
    wanted_BR = (uniforms_BR * num_present_B1).long().clamp(max=num_present_B1 - 1) + 1
    return torch.searchsorted(rank_BI, wanted_BR)


def sample_different_ids(cells_Bgg: Tensor, uniforms_BI: Tensor, num_sampled: int) -> Tensor:
    """Pick different mask ids, those present first and absent ones where they do not suffice.

    The released code's draw: without replacement, absent ids weighing 1e-11 of a present one. The
    pooled vector of an absent id is zero.

    Args:
        cells_Bgg: cell labels of one view.
        uniforms_BI: random numbers in [0, 1), one per image and id.

    Returns:
        int64 (B, num_sampled).
    """
    num_ids = uniforms_BI.shape[1]
    absent_BI = ~present_ids(cells_Bgg)[:, :num_ids]
    return (uniforms_BI + absent_BI).argsort(dim=1)[:, :num_sampled]


def merge_ids(labels_BHW: Tensor, num_ids: int) -> Tensor:
    """Turn ids from ``num_ids`` on into 0."""
    if num_ids >= NUM_IDS:
        return labels_BHW
    return labels_BHW.where(labels_BHW < num_ids, 0)


def pool(features_BDgg: Tensor, cells_Bgg: Tensor, ids_BR: Tensor) -> Tensor:
    """Average the features of the cells that belong to each id (Eq. 1): (B, R, D)."""
    masks_BRC = (ids_BR[:, :, None] == cells_Bgg.flatten(1)[:, None, :]).to(features_BDgg.dtype)
    masks_BRC = masks_BRC / masks_BRC.sum(dim=2, keepdim=True).clamp(min=1)
    return masks_BRC @ features_BDgg.flatten(2).transpose(1, 2)
