"""Weighted k-nearest-neighbour classification of frozen features.

The protocol of InstDisc (Wu et al. 2018, Sec. 3.4) and DINO (Caron et al. 2021): the k training
images of largest cosine similarity s vote with weight exp(s / temperature). Here each query's
weights are scaled to sum 1, which changes no query's ranking of the classes and makes the votes of
different queries comparable, as a mean average precision needs.

Shape letters: N training images, M queries, D feature size, C classes, K neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslbench.metrics import average_precision

CHUNK_NUMBERS = 1 << 24  # similarities held at a time


@dataclass(frozen=True)
class Vote:
    """Who votes on a query, and how much closer ones count more."""

    neighbours: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.temperature <= 0:
            raise ValueError(
                f"neighbours {self.neighbours} and temperature {self.temperature} must be positive"
            )


@dataclass(frozen=True)
class Accuracy:
    """Shares of the queries whose class is the first, or among the first five."""

    top1: float
    top5: float


def accuracy(
    train_ND: Tensor, labels_N: Tensor, queries_MD: Tensor, truth_M: Tensor, vote: Vote
) -> Accuracy:
    """Classify images of one class each.

    Of classes with equal votes the lower number comes first; one without votes is never named.

    Args:
        train_ND: of any norm; on the device where all is computed.
        labels_N: int64, from 0.
    """
    labels_N, truth_M = labels_N.to(train_ND.device), truth_M.to(train_ND.device)
    num_classes = int(torch.cat([labels_N, truth_M]).max()) + 1
    ranks = []
    for place, weights_MK, neighbours_MK in _neighbours(train_ND, queries_MD, vote):
        voted_MKC = F.one_hot(labels_N[neighbours_MK], num_classes)
        votes_MC = torch.einsum("mk,mkc->mc", weights_MK, voted_MKC.to(weights_MK.dtype))
        ranks.append(_ranks(votes_MC, truth_M[place]))
    ranks_M = torch.cat(ranks)
    top1, top5 = ((ranks_M < first).double().mean().item() for first in (1, 5))
    return Accuracy(top1, top5)


def _ranks(votes_MC: Tensor, truth_M: Tensor) -> Tensor:
    """Place of the true class among the classes, from 0; beyond all places without a vote."""
    own_M1 = votes_MC.gather(1, truth_M[:, None])
    num_classes = votes_MC.shape[1]
    is_before = torch.arange(num_classes, device=truth_M.device) < truth_M[:, None]
    ahead_M = ((votes_MC > own_M1) | ((votes_MC == own_M1) & is_before)).sum(dim=1)
    return torch.where(own_M1[:, 0] > 0, ahead_M, max(num_classes, 5))


def class_votes(train_ND: Tensor, labels_NC: Tensor, queries_MD: Tensor, vote: Vote) -> Tensor:
    """Share of each query's neighbours, by weight, that show each class: (M, C) in [0, 1].

    Args:
        labels_NC: 1 where an image shows a class; everything else counts as absent.
    """
    shows_NC = (labels_NC == 1).to(train_ND.device, train_ND.dtype)
    votes = [
        torch.einsum("mk,mkc->mc", weights_MK, shows_NC[neighbours_MK])
        for _, weights_MK, neighbours_MK in _neighbours(train_ND, queries_MD, vote)
    ]
    return torch.cat(votes)


def mean_average_precision(
    train_ND: Tensor, labels_NC: Tensor, queries_MD: Tensor, truth_MC: Tensor, vote: Vote
) -> float:
    """Rank the queries of every class by their votes; average the precision over the classes.

    As with the SVMs of ``eval_svm``, an image with only difficult instances (label 0) counts as
    absent in training and is left out of the test; a class that no image of either side shows is
    left out.

    Args:
        labels_NC, truth_MC: 1 present, -1 absent, 0 only difficult instances.

    Raises:
        ValueError: no class is left.
    """
    votes_MC = class_votes(train_ND, labels_NC, queries_MD, vote).cpu().numpy()
    truth_MC = truth_MC.cpu()
    found = []
    for index in classes_on_both_sides(labels_NC.cpu(), truth_MC):
        truth_M = truth_MC[:, index].numpy()
        counted = truth_M != 0
        found.append(average_precision(votes_MC[counted, index], truth_M[counted] == 1))
    if not found:
        raise ValueError("no class is shown both by a training image and by a test image")
    return float(np.mean(found))


def classes_on_both_sides(labels_NC: Tensor, truth_MC: Tensor) -> list[int]:
    """Classes that an image of either side shows."""
    shown_C = (labels_NC == 1).any(dim=0) & (truth_MC == 1).any(dim=0)
    found: list[int] = shown_C.nonzero()[:, 0].tolist()
    return found


def _neighbours(
    train_ND: Tensor, queries_MD: Tensor, vote: Vote
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield chunk by chunk the queries' places, their neighbours' weights and indices.

    Of equally near training images the earlier ones are taken, on every device.
    """
    if vote.neighbours > len(train_ND):
        raise ValueError(
            f"{vote.neighbours} neighbours were asked of {len(train_ND)} training images; ask fewer"
        )
    train_ND = F.normalize(train_ND, dim=1)
    queries_MD = F.normalize(queries_MD.to(train_ND), dim=1)
    size = max(1, CHUNK_NUMBERS // len(train_ND))
    for start in range(0, len(queries_MD), size):
        similarity_MN = queries_MD[start : start + size] @ train_ND.T
        indices_MK = _nearest(similarity_MN, vote.neighbours)
        logits_MK = similarity_MN.gather(1, indices_MK) / vote.temperature
        yield slice(start, start + size), logits_MK.softmax(dim=1), indices_MK


def _nearest(similarity_MN: Tensor, count: int) -> Tensor:
    """Indices of each row's largest values, ascending; ``topk`` leaves open which equals it takes.

    A sort would settle it too, but of a large row it takes many times as long.
    """
    least_M1 = similarity_MN.topk(count, dim=1).values[:, -1:]
    above_MN, equal_MN = similarity_MN > least_M1, similarity_MN == least_M1
    places_left_M1 = count - above_MN.sum(dim=1, keepdim=True)
    chosen_MN = above_MN | (equal_MN & (equal_MN.cumsum(dim=1) <= places_left_M1))
    return chosen_MN.nonzero()[:, 1].view(-1, count)
