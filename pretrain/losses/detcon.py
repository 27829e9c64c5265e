"""Mask-dependent contrastive loss (paper Eq. 2, the DetCon-B loss), one direction.

Anchors are masks of one view. Positives are the masks with the same id of the same image in the
other view; negatives are all other masks of all images of all processes, in both views.

Shape letters: B images here, R sampled masks, D channels, A = B*R anchors, N targets of one view on
all processes, M = 2*N of both views.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslbench import dist
from sslbench.precision import at_least_fp32

NUM_IDS = 256


@dataclass(frozen=True)
class Targets:
    """What anchors are compared with: one view's target vectors, from all processes."""

    vectors_ND: Tensor  # unit length, no gradient
    names_N: Tensor  # int64, image * 256 + id: equal exactly for one mask of one image

    @classmethod
    def gather(cls, vectors_BRD: Tensor, ids_BR: Tensor) -> "Targets":
        """Collect one view's target vectors from every process."""
        vectors = F.normalize(at_least_fp32(vectors_BRD.detach()), dim=-1)
        return cls(
            vectors_ND=dist.all_gather(vectors).flatten(0, 1),
            names_N=dist.all_gather(mask_names(ids_BR, dist.rank() * len(ids_BR))).flatten(),
        )


def mask_names(ids_BR: Tensor, first: int) -> Tensor:
    """Number the masks of all images of all processes; an id alone means something in one image.

    Args:
        first: place of the first image in the global batch.
    """
    images_B1 = torch.arange(first, first + len(ids_BR), device=ids_BR.device)[:, None]
    return images_B1 * NUM_IDS + ids_BR


@dataclass(frozen=True)
class DetConLoss:
    """One direction of the loss and what is worth watching about it."""

    loss: Tensor  # mean over all B*R anchors, those without a positive counted as 0
    share_positive: Tensor  # of anchors that have a positive
    weighted_loss: Tensor  # sum(w * loss) / sum(w): comparable between mask sources
    positive_cosine: Tensor
    negative_cosine: Tensor  # as the two above: 0 where there is nothing to average


def detcon_loss(
    anchors_BRD: Tensor,
    ids_BR: Tensor,
    own: Targets,
    other: Targets,
    temperature: float,
    first: int = 0,
) -> DetConLoss:
    """Contrast one view's anchors with the targets of both views.

    Args:
        anchors_BRD: predictions of the online network; gradients flow here.
        ids_BR: mask ids of the anchors.
        own: targets of the anchors' view; the anchor's own mask is left out of them.
        other: targets of the other view, where the positives are.
        first: place of the anchors' first image in the global batch.
    """
    anchors_AD = F.normalize(at_least_fp32(anchors_BRD), dim=-1).flatten(0, 1)
    names_A1 = mask_names(ids_BR, first).flatten()[:, None]
    cosines_AN = anchors_AD @ other.vectors_ND.T
    own_logits_AN = (anchors_AD @ own.vectors_ND.T / temperature).masked_fill(
        names_A1 == own.names_N, -torch.inf
    )
    logits_AM = torch.cat([cosines_AN / temperature, own_logits_AN], dim=1)
    log_softmax_AN = cosines_AN / temperature - logits_AM.logsumexp(dim=1, keepdim=True)

    positive_AN = names_A1 == other.names_N
    num_positives_A = positive_AN.sum(dim=1)
    losses_A = -(log_softmax_AN * positive_AN).sum(dim=1) / num_positives_A.clamp(min=1)
    weights_A = anchor_weights(ids_BR, num_positives_A > 0, losses_A.dtype)
    return DetConLoss(
        loss=(weights_A * losses_A).mean(),
        **_monitors(cosines_AN.detach(), positive_AN, weights_A, losses_A.detach()),
    )


def anchor_weights(ids_BR: Tensor, has_positive_A: Tensor, dtype: torch.dtype) -> Tensor:
    """Weigh an anchor by one over how often its id was drawn, or 0 where it has no positive."""
    copies_BR = (ids_BR[:, :, None] == ids_BR[:, None, :]).sum(dim=2)
    # In the loss's dtype: integer division would give float32 and lose half the digits.
    return has_positive_A.to(dtype) / copies_BR.flatten().to(dtype)


def _monitors(
    cosines_AN: Tensor, positive_AN: Tensor, weights_A: Tensor, losses_A: Tensor
) -> dict[str, Tensor]:
    num_positives = positive_AN.sum()
    num_negatives = positive_AN.numel() - num_positives
    positive_sum = (cosines_AN * positive_AN).sum()
    return {
        "share_positive": (weights_A > 0).to(weights_A.dtype).mean(),
        # A sum of weights is 0 or at least 1 / R, so the bound only keeps 0 / 0 from making NaN.
        "weighted_loss": (weights_A * losses_A).sum() / weights_A.sum().clamp(min=1e-6),
        "positive_cosine": positive_sum / num_positives.clamp(min=1),
        "negative_cosine": (cosines_AN.sum() - positive_sum) / num_negatives.clamp(min=1),
    }
