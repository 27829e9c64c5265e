"""A predictions file becomes results: the last step of a run, or alone on anybody's predictions.

``python -m transfer evaluate coco_fpn --predictions coco_instances_results.json --data DIR``
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sslbench.datasets import DataRoots, Dataset, content_id, read
from sslbench.files import file_sha256, write_json
from sslbench.results import Result, write_results
from transfer.evaluators import Evaluation, evaluate, kinds_of
from transfer.evaluators.reading import Kind, Predictions
from transfer.protocol import departures_of_test
from transfer.task import TaskConfig


class Scored(NamedTuple):
    """A predictions file in numbers."""

    evaluation: Evaluation
    results: list[Result]
    num_detections: int

    def write(self, out: Path) -> None:
        """Write the results; ``NAME.classes.json`` beside them gets the classes."""
        classes = out.with_name(f"{out.stem}.classes.json")
        write_classes(classes, self.evaluation, self.num_detections)
        write_results(out, self.results)


def score(task: TaskConfig, predictions: Predictions, test: Dataset) -> Evaluation:
    """Check and evaluate a file as the task says."""
    kinds = predictions.check.kinds
    return predictions.feed(
        lambda batches: evaluate(task.metric, test, batches, kinds, task.evaluator)
    )


def results_of(
    task: TaskConfig,
    evaluation: Evaluation,
    test: Dataset,
    data: DataRoots,
    notes: Sequence[str] = (),
) -> list[Result]:
    """One result per number."""
    data_id = content_id(task.test, data)
    return [
        Result(
            task=task.task,
            metric=name,
            value=value,
            seed=task.seed,
            num_images=len(test.records),
            data_id=data_id,
            task_version=task.protocol_version,
            engine="" if task.engine == "auto" else task.engine,
            footnotes=(*notes, *evaluation.footnotes),
        )
        for name, value in evaluation.metrics.items()
    ]


def write_classes(path: Path, evaluation: Evaluation, num_detections: int) -> None:
    """Write the numbers of each class, and what evaluated how much."""
    content = {
        "evaluator": evaluation.evaluator,
        "num_detections": num_detections,
        "classes": list(evaluation.classes),
    }
    write_json(path, content)


def evaluate_file(
    task: TaskConfig, path: Path, data: DataRoots, only: Kind | None = None
) -> Scored:
    """Score predictions that no run of ours need have made.

    Args:
        only: boxes or masks alone, for a file that lacks the others.

    Raises:
        PredictionError: the file does not fit the task's test split.
        ValueError: ``only`` is what the task does not have.
    """
    kinds = kinds_of(task.kind)
    if only is not None and only not in kinds:
        raise ValueError(f"--only {only}: task {task.task} ({task.kind}) has {', '.join(kinds)}")
    test = read(task.test, data)
    predictions = Predictions(path, test, kinds if only is None else (only,))
    evaluation = score(task, predictions, test)
    file = f"{path.name}, sha256 {file_sha256(path)[:12]}"
    given = f"scored from a given file ({file}) on {task.test} by the rules of {task.metric}"
    notes = (given, *departures_of_test(task, test))
    results = results_of(task, evaluation, test, data, notes)
    return Scored(evaluation, results, predictions.num_rows)
