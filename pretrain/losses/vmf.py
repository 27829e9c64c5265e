"""Pixel-to-prototype distance under a von Mises-Fisher mixture (paper Eq. 4).

Shape letters: P pixels, D channels, K prototypes.
"""

import torch.nn.functional as F
from torch import Tensor


def vmf_distance(pixels_PD: Tensor, prototypes_KD: Tensor, owner_P: Tensor, kappa: float) -> Tensor:
    """Negative log posterior of a pixel's own prototype: -log softmax_k(kappa mu_k . y)[owner].

    Args:
        pixels_PD: features of any norm; gradients flow here only.
        prototypes_KD: cluster centres, detached. Duplicates stay: with them removed, a collapsed
            map would cost log 1 = 0 and be the global minimum.
        owner_P: int64 in [0, K), the prototype that owns each pixel.
        kappa: concentration of the mixture, i.e. an inverse temperature.

    Returns:
        One distance per pixel, (P,).
    """
    pixels_PD = F.normalize(pixels_PD, dim=-1, eps=1e-6)
    # Centres lie inside the sphere; without this kappa would shrink as clusters widen.
    prototypes_KD = F.normalize(prototypes_KD.detach(), dim=-1, eps=1e-6)
    logits_PK = kappa * pixels_PD @ prototypes_KD.T
    return F.cross_entropy(logits_PK, owner_P, reduction="none")
