"""Predictions and annotations become numbers, whichever engine predicted."""

from collections.abc import Mapping, Sequence
from typing import Any

from sslbench.datasets import Dataset
from transfer.task import Metric


def evaluate(
    metric: Metric, dataset: Dataset, rows: Sequence[Mapping[str, Any]], *, with_masks: bool
) -> tuple[dict[str, float | None], tuple[str, ...]]:
    """Score predictions in COCO's result format; return metrics in percent and footnotes."""
    if metric == "coco":
        from transfer.evaluators.coco import evaluate_coco

        return evaluate_coco(dataset, rows, ("box", "mask") if with_masks else ("box",)), ()
    from transfer.evaluators.voc import evaluate_voc

    found = evaluate_voc(dataset, rows, metric)
    notes: tuple[str, ...] = ()
    if found.missing:
        notes = (f"classes without objects, not averaged: {', '.join(found.missing)}",)
    return dict(found.metrics), notes
