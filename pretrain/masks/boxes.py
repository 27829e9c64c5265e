"""Masks from selective-search boxes (Uijlings et al. 2013), as OpenCV's contrib modules find them.

The paper says no more than "boxes". We search in the fast mode on a shrunken image, leave out small
and elongated boxes, and keep of the others those that overlap no larger one by more than half. They
are painted from the largest to the smallest, so that a part shows in front of its whole.
"""

from typing import Any

import numpy as np

from pretrain.masks.cells import MAX_LABELS, majority
from pretrain.masks.store import MaskError

SEARCH_SIDE = 256  # pixels of the longer side of the image that is searched
MIN_SIDE = 0.15  # of the image's longer side: 96 of 640 pixels
MAX_ASPECT = 3  # longer side of a box over the shorter one
MAX_OVERLAP = 0.5  # intersection over union with a larger box
MAX_BOXES = MAX_LABELS - 1  # beside the background


def box_labels(image_HW3: np.ndarray) -> np.ndarray:
    """Boxes of an image at stride 8, uint8 (h, w): 0 background, then in painting order.

    Raises:
        MaskError: OpenCV's contrib modules are missing.
    """
    boxes_N4 = select(_proposals(image_HW3), MIN_SIDE * max(image_HW3.shape[:2]))
    painted_HW = np.zeros(image_HW3.shape[:2], np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes_N4.tolist(), start=1):
        painted_HW[y0:y1, x0:x1] = number
    return majority(painted_HW).astype(np.uint8)


def select(boxes_N4: np.ndarray, min_side: float) -> np.ndarray:
    """Keep what is painted, from the largest box to the smallest.

    Args:
        boxes_N4: x0, y0, x1, y1 in whole pixels; their order does not matter.
        min_side: pixels of the shorter side.
    """
    sizes_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    shorter_N, longer_N = sizes_N2.min(axis=1), sizes_N2.max(axis=1)
    fitting_N = (shorter_N >= min_side) & (longer_N <= MAX_ASPECT * shorter_N)
    boxes_N4 = np.unique(boxes_N4[fitting_N], axis=0)
    # OpenCV orders its boxes by an unseeded random number: the area has to decide, then the place.
    boxes_N4 = boxes_N4[np.argsort(-_areas(boxes_N4), kind="stable")]
    kept: list[np.ndarray] = []
    for box_4 in boxes_N4:
        if len(kept) == MAX_BOXES:
            break
        if not kept or _overlaps(box_4, np.array(kept)).max() <= MAX_OVERLAP:
            kept.append(box_4)
    return np.array(kept, boxes_N4.dtype).reshape(-1, 4)


def _areas(boxes_N4: np.ndarray) -> np.ndarray:
    areas_N: np.ndarray = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(axis=1)
    return areas_N


def _overlaps(box_4: np.ndarray, others_N4: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with each of others."""
    low_N2 = np.maximum(box_4[:2], others_N4[:, :2])
    high_N2 = np.minimum(box_4[2:], others_N4[:, 2:])
    common_N = (high_N2 - low_N2).clip(0).prod(axis=1)
    overlaps_N: np.ndarray = common_N / (_areas(box_4[None]) + _areas(others_N4) - common_N)
    return overlaps_N


def _proposals(image_HW3: np.ndarray) -> np.ndarray:
    """All boxes of the search, (N, 4) x0, y0, x1, y1 in pixels of the whole image."""
    cv2 = contrib()
    height, width = image_HW3.shape[:2]
    scale = min(1.0, SEARCH_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small_hw3 = cv2.resize(image_HW3[..., ::-1].copy(), size, interpolation=cv2.INTER_AREA)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(small_hw3)
    search.switchToSelectiveSearchFast()
    found_N4 = np.asarray(search.process(), np.float64).reshape(-1, 4)  # x, y, width, height
    found_N4[:, 2:] += found_N4[:, :2]
    found_N4 *= np.array([width / size[0], height / size[1]] * 2)
    return found_N4.round().astype(np.int64)


def contrib() -> Any:
    """OpenCV with its contrib modules.

    Raises:
        MaskError: they are missing.
    """
    try:
        import cv2
    except ImportError:
        cv2 = None
    if not hasattr(cv2, "ximgproc"):
        # The plain opencv-python's files lie where the contrib package's do.
        raise MaskError(
            "masks.source='boxes' needs OpenCV with its contrib modules, which a plain "
            "opencv-python hides: .venv/bin/python -m pip uninstall opencv-python, then "
            ".venv/bin/python -m pip install --force-reinstall --no-deps "
            "opencv-contrib-python-headless"
        )
    return cv2
