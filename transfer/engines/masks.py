"""Instance masks between their three forms: COCO's, pixels, and a mask head's square map.

Shape letters: N objects, H x W pixels, M side of a mask head's map.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import roi_align

from sslbench.datasets import DataError
from sslbench.datasets.outlines import LEAST_NUMBERS

# An object at the size its detector sees it: polygons as x, y, x, y, ..., or uint8 pixels (H, W).
Shape = tuple[np.ndarray, ...] | np.ndarray


def valid_polygons(polygons: Sequence[Sequence[float]]) -> list[list[float]]:
    """Those of at least three points; COCO's tools would take four numbers for a box."""
    return [
        list(points) for points in polygons if len(points) % 2 == 0 and len(points) >= LEAST_NUMBERS
    ]


def rasterise(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Draw polygons or decode an RLE as uint8 (H, W).

    Raises:
        DataError: an RLE was made for another image size.
    """
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise DataError(
                f"{where}: its RLE has size {list(segmentation['size'])}, "
                f"the image {[height, width]}"
            )
        if isinstance(segmentation["counts"], list):
            segmentation = coco_mask.frPyObjects(segmentation, height, width)
        return np.asarray(coco_mask.decode(segmentation))
    parts = coco_mask.frPyObjects(segmentation, height, width)
    return np.asarray(coco_mask.decode(coco_mask.merge(parts)))


def cut(shape: Shape, box_4: np.ndarray, side: int) -> np.ndarray:
    """Draw the part of an object that lies in a box as a ``side`` x ``side`` uint8 map.

    Args:
        box_4: in the pixels in which the shape is given.
    """
    if isinstance(shape, np.ndarray):
        region_15 = torch.from_numpy(np.concatenate([[0], box_4]))[None].float()
        pixels = torch.from_numpy(shape)[None, None].float()
        inside = roi_align(pixels, region_15, side, 1.0, aligned=True)[0, 0] >= 0.5
        part: np.ndarray = inside.numpy().astype(np.uint8)
        return part
    scale_2 = side / np.maximum(box_4[2:] - box_4[:2], 0.1)
    moved = [((points.reshape(-1, 2) - box_4[:2]) * scale_2).ravel().tolist() for points in shape]
    return rasterise(moved, side, side, "an object")


def encode(mask_HW: np.ndarray) -> dict[str, Any]:
    """Compress a binary mask to COCO RLE with JSON-ready counts."""
    rle = coco_mask.encode(np.asfortranarray(mask_HW, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def paste(
    probabilities_NMM: Tensor, boxes_N4: Tensor, height: int, width: int
) -> tuple[dict[str, Any], ...]:
    """Stretch each map over its box in an image of the given size and threshold at one half."""
    found = []
    for probability_MM, box in zip(probabilities_NMM, boxes_N4, strict=True):
        mask_HW = np.zeros((height, width), np.uint8, order="F")  # as it is encoded
        # one pixel beyond the box: bilinear sampling still reads the map's border there
        x0, y0 = (int(v) for v in (box[:2].floor() - 1).clamp(min=0))
        x1 = min(int(box[2].ceil()) + 1, width)
        y1 = min(int(box[3].ceil()) + 1, height)
        window = _sample(probability_MM, box, (x0, y0, x1, y1))
        mask_HW[y0:y1, x0:x1] = (window >= 0.5).cpu().numpy()
        found.append(encode(mask_HW))
    return tuple(found)


def _sample(probability_MM: Tensor, box: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """Read the map at the pixel centres of a window, in the box's own coordinates in [-1, 1]."""
    x0, y0, x1, y1 = window
    xs = torch.arange(x0, x1, device=box.device, dtype=torch.float32) + 0.5
    ys = torch.arange(y0, y1, device=box.device, dtype=torch.float32) + 0.5
    xs = (xs - box[0]) / (box[2] - box[0]) * 2 - 1
    ys = (ys - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)[None]
    return F.grid_sample(probability_MM[None, None].float(), grid, align_corners=False)[0, 0]
