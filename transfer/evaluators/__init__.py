"""Predictions and annotations become numbers, whichever engine predicted. No torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sslbench.datasets import Dataset

if TYPE_CHECKING:
    from transfer.evaluators.reading import Kind, Row
    from transfer.task import Metric

Choice = Literal["default", "reference"]


@dataclass(frozen=True)
class Evaluation:
    """Percent; None where there was nothing to evaluate.

    Args:
        classes: a row per class: its name, its category id and its numbers.
        evaluator: the code that found them, with its version.
    """

    metrics: dict[str, float | None]
    classes: tuple[dict[str, Any], ...]
    evaluator: str
    footnotes: tuple[str, ...] = ()


def kinds_of(task_kind: str) -> "tuple[Kind, ...]":
    """What a detector of this kind predicts."""
    return ("box", "mask") if task_kind == "mask_rcnn" else ("box",)


def evaluate(
    metric: "Metric",
    dataset: Dataset,
    batches: "Iterable[list[Row]]",
    kinds: "Sequence[Kind]" = ("box",),
    choice: Choice = "default",
) -> Evaluation:
    """Score predictions in COCO's result format.

    Args:
        batches: checked rows, each batch with all rows of its images.
        choice: the fast evaluator, or the one that defined the numbers.

    Raises:
        DataError: annotations that an evaluator would misread.
    """
    if metric == "voc07" or metric == "voc12":
        return _voc(metric, dataset, batches, choice)
    from transfer.evaluators.truth import check_truth

    check_truth(dataset, kinds)
    backend, notes = _backend(choice, metric)
    found = backend.score(metric, dataset, batches, kinds)
    metrics = {
        f"{kind}_{name}": value for kind in kinds for name, value in found[kind].summary.items()
    }
    classes = []
    for index, (name, category) in enumerate(
        zip(dataset.classes, dataset.category_ids, strict=True)
    ):
        values = {f"{k}_{n}": v for k in kinds for n, v in found[k].classes[index].items()}
        classes.append({"name": name, "category_id": category, **values})
    return Evaluation(metrics, tuple(classes), backend.name(metric), notes)


def _backend(choice: Choice, metric: Literal["coco", "lvis"]) -> tuple[Any, tuple[str, ...]]:
    from transfer.evaluators import fast, reference

    if choice == "reference":
        return reference, (f"evaluated with {reference.name(metric)}",)
    try:
        import hotcoco  # noqa: F401
    except ImportError as error:
        reason = str(error) or "no module named hotcoco"
        slow = reference.name(metric)
        return reference, (f"evaluated with {slow}, slowly: hotcoco cannot be imported ({reason})",)
    return fast, ()


def _voc(
    metric: Literal["voc07", "voc12"],
    dataset: Dataset,
    batches: "Iterable[list[Row]]",
    choice: Choice,
) -> Evaluation:
    from transfer.evaluators.voc import evaluate_voc

    if choice == "reference":
        raise ValueError(
            f"metric {metric!r} has one evaluator, tested against Detectron2's; leave out "
            "the choice of another (--evaluator, or evaluator = in the task)"
        )
    found = evaluate_voc(dataset, (row for rows in batches for row in rows), metric)
    notes: tuple[str, ...] = ()
    if found.missing:
        notes = (f"classes without objects, not averaged: {', '.join(found.missing)}",)
    classes = tuple(
        {"name": name, "category_id": category, **found.per_class[name]}
        for name, category in zip(dataset.classes, dataset.category_ids, strict=True)
    )
    return Evaluation(dict(found.metrics), classes, "transfer.evaluators.voc", notes)
