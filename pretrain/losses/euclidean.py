"""Squared distance of pixels to their prototypes, the alternative of the paper's Table 2f.

Shape letters: P pixels, D channels, K prototypes.
"""

import torch.nn.functional as F
from torch import Tensor


def euclidean_distance(pixels_PD: Tensor, prototypes_KD: Tensor, owner_P: Tensor) -> Tensor:
    """Squared distance between unit vectors, 2 - 2 cos, in [0, 4]: one value per pixel, (P,).

    Args:
        pixels_PD: features of any norm; gradients flow here only.
        prototypes_KD: cluster centres, detached.
        owner_P: int64 in [0, K), the prototype that owns each pixel.
    """
    pixels_PD = F.normalize(pixels_PD, dim=-1, eps=1e-6)
    prototypes_KD = F.normalize(prototypes_KD.detach(), dim=-1, eps=1e-6)
    return 2 - 2 * (pixels_PD * prototypes_KD[owner_P]).sum(dim=-1)
