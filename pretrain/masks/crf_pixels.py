"""The dense CRF of ``crf.py`` at full resolution, for pictures.

The exact kernel between 300,000 pixels is out of reach. The near kernel is a separable
convolution, cut at 5 sigmas (3.7e-6); the one in place and colour is filtered on the permutohedral
lattice, as in the authors' code. As on the grid kernels are scaled by row sums, and what a pixel
sends to itself is taken away: the near kernel's exactly, of the lattice's too much, by 7 % of it
on average in two photographs and by 32 % at most (``Lattice.own_weight``). After random unaries 2
to 5 % of the pixels of photographs get another label than exact mean field gives them. On the CPU:
2 to 6 s of one core for 640x480 pixels and 8 to 32 labels.

The unaries are those of the cells, bilinearly enlarged. They come from features where there is a
checkpoint; a store keeps labels only, and then its own label has ``LABEL_CONFIDENCE`` in each cell
and the image's others share the rest.

Shape letters: N pixels (H x W) or cells (h x w) of an image, L labels, D channels, K prototypes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import correlate1d
from scipy.special import softmax
from torch import Tensor

from pretrain.masks.crf import (
    ALIKE_SIGMA,
    ALIKE_WEIGHT,
    COLOUR_SIGMA,
    ITERATIONS,
    KAPPA,
    NEAR_SIGMA,
    NEAR_WEIGHT,
)
from pretrain.masks.lattice import Lattice

LABEL_CONFIDENCE = 0.7  # customary for labels without scores
NEAR_RADIUS = round(5 * NEAR_SIGMA)  # pixels


def refine_by_labels(labels_hw: np.ndarray, image_HW3: np.ndarray) -> np.ndarray:
    """Refine stored labels by the image alone, (H, W); no label appears that was not there."""
    present_L, inverse = np.unique(labels_hw, return_inverse=True)
    inverse_hw = torch.from_numpy(inverse.reshape(labels_hw.shape))
    own_Lhw = F.one_hot(inverse_hw, len(present_L)).permute(2, 0, 1).bool()
    others = (1 - LABEL_CONFIDENCE) / max(len(present_L) - 1, 1)
    probability_Lhw = torch.where(own_Lhw, LABEL_CONFIDENCE, others)
    return _refine(present_L, -probability_Lhw.log(), image_HW3)


def refine_by_features(
    labels_hw: np.ndarray, points_ND: Tensor, prototypes_KD: Tensor, image_HW3: np.ndarray
) -> np.ndarray:
    """Refine stored labels by their cells' features, (H, W), as ``crf.refine`` does on the grid.

    Args:
        points_ND: unit features of the cells, row by row.
        prototypes_KD: unit rows; a label is the index of one.
    """
    present_L = np.unique(labels_hw)
    logits_NL = KAPPA * points_ND @ prototypes_KD[present_L.tolist()].T
    unary_Lhw = -F.log_softmax(logits_NL, dim=1).T.reshape(-1, *labels_hw.shape)
    return _refine(present_L, unary_Lhw, image_HW3)


def _refine(present_L: np.ndarray, unary_Lhw: Tensor, image_HW3: np.ndarray) -> np.ndarray:
    size = image_HW3.shape[:2]
    unary_LHW = F.interpolate(unary_Lhw[None], size, mode="bilinear", align_corners=False)[0]
    posterior_HWL = pixel_mean_field(unary_LHW.permute(1, 2, 0).numpy(), image_HW3)
    refined_HW: np.ndarray = present_L[posterior_HWL.argmax(axis=2)]
    return refined_HW


def pixel_mean_field(unary_HWL: np.ndarray, image_HW3: np.ndarray) -> np.ndarray:
    """Posterior of the labels after all iterations, float32 (H, W, L).

    Args:
        unary_HWL: energies.
        image_HW3: colours, 0..255.
    """
    near, alike = _Near(image_HW3), _Alike(image_HW3)
    unary_HWL = unary_HWL.astype(np.float32)
    posterior_HWL = softmax(-unary_HWL, axis=2)
    for _ in range(ITERATIONS):
        messages_HWL = near.messages(posterior_HWL)
        messages_HWL += alike.messages(posterior_HWL)
        messages_HWL -= unary_HWL
        posterior_HWL = softmax(messages_HWL, axis=2)
    return posterior_HWL


class _Near:
    """What pixels close in place send to each."""

    def __init__(self, image_HW3: np.ndarray) -> None:
        offsets = np.arange(-NEAR_RADIUS, NEAR_RADIUS + 1)
        self.gaussian = np.exp(-((offsets / NEAR_SIGMA) ** 2) / 2)
        ones_HW1 = np.ones((*image_HW3.shape[:2], 1), np.float32)
        self.scale_HW1 = self._filter(ones_HW1) ** -0.5

    def messages(self, posterior_HWL: np.ndarray) -> np.ndarray:
        scaled_HWL = self.scale_HW1 * posterior_HWL
        messages_HWL: np.ndarray = self._filter(scaled_HWL) - scaled_HWL
        messages_HWL *= NEAR_WEIGHT * self.scale_HW1
        return messages_HWL

    def _filter(self, values_HWL: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            values_HWL = correlate1d(values_HWL, self.gaussian, axis=axis, mode="constant")
        return values_HWL


class _Alike:
    """What pixels close in place and colour send to each."""

    def __init__(self, image_HW3: np.ndarray) -> None:
        places_HW2 = np.stack(np.indices(image_HW3.shape[:2]), axis=2)
        points_HW5 = np.concatenate([places_HW2 / ALIKE_SIGMA, image_HW3 / COLOUR_SIGMA], axis=2)
        self.lattice = Lattice(points_HW5.reshape(-1, 5))
        self.own_N1 = self.lattice.own_weight()[:, None]
        self.scale_N1 = self.lattice.filter(np.ones_like(self.own_N1)) ** -0.5

    def messages(self, posterior_HWL: np.ndarray) -> np.ndarray:
        scaled_NL = self.scale_N1 * posterior_HWL.reshape(len(self.scale_N1), -1)
        messages_NL = self.lattice.filter(scaled_NL)
        messages_NL -= self.own_N1 * scaled_NL
        messages_NL *= ALIKE_WEIGHT * self.scale_N1
        return messages_NL.reshape(posterior_HWL.shape)
