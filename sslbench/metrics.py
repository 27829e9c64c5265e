"""Average precision in the two ways of the literature; neither is VOC's 11-point one.

VirTex and CYBORGS sum the precision at every step of the recall. VISSL and OpenSelfSup first raise
each precision to the best one at any higher recall (the area under the envelope, as VOC 2010).
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def average_precision(scores: npt.ArrayLike, is_positive: npt.ArrayLike) -> float:
    """Sum precision times gain in recall over the ranking; NaN without positives."""
    precision, recall = precision_recall(scores, is_positive)
    return _area(precision, recall)


def envelope_average_precision(scores: npt.ArrayLike, is_positive: npt.ArrayLike) -> float:
    """Measure the area under the non-increasing envelope; NaN without positives."""
    precision, recall = precision_recall(scores, is_positive)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return _area(envelope, recall)


def precision_recall(scores: npt.ArrayLike, is_positive: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return precision and recall after each distinct score, from the highest down.

    Equal scores enter together: their order in the input means nothing.
    """
    scores = np.asarray(scores, dtype=np.float64)
    positive = np.asarray(is_positive, dtype=bool)
    if scores.shape != positive.shape or scores.ndim != 1 or not len(scores):
        raise ValueError(f"scores {scores.shape} and labels {positive.shape} make no ranking")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(positive[order])[ends]
    with np.errstate(invalid="ignore"):
        return hits / (ends + 1), hits / positive.sum()


def _area(precision: Floats, recall: Floats) -> float:
    return float(np.sum(precision * np.diff(recall, prepend=0.0)))
