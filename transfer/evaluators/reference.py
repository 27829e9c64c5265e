"""COCO and LVIS scores by the packages that define them: pycocotools, and lvis 0.5.3.

Slow, and all predictions are in memory at once: the numbers that every other backend must give.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

from sslbench.datasets import Dataset
from sslbench.log import only_errors
from transfer.evaluators.reading import Kind, Row
from transfer.evaluators.scores import IOU_TYPE, Family, Scores, build_scores, without
from transfer.evaluators.truth import check_annotations, check_federation


def name(family: Family) -> str:
    """Package and version."""
    package = "pycocotools" if family == "coco" else "lvis"
    return f"{package} {version(package)}"


def score(
    family: Family, dataset: Dataset, batches: Iterable[list[Row]], kinds: Sequence[Kind]
) -> dict[Kind, Scores]:
    """Score predictions in COCO's result format; see ``fast.score``."""
    rows = [row for batch in batches for row in batch]
    by_family = _coco if family == "coco" else _lvis
    found: dict[Kind, Scores] = {}
    for kind in kinds:
        # Each call gets rows of its own: the packages write into them.
        own = [without(row, "segmentation" if kind == "box" else "bbox") for row in rows]
        with contextlib.redirect_stdout(io.StringIO()):  # they print their tables
            found[kind] = by_family(dataset, own, IOU_TYPE[kind])
    return found


def _coco(dataset: Dataset, rows: list[Row], iou_type: str) -> Scores:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(dataset.annotation_path))
    check_annotations(truth.dataset["annotations"], str(dataset.annotation_path))
    for annotation in truth.dataset["annotations"]:
        annotation.setdefault("iscrowd", 0)
    if rows:
        found = truth.loadRes(rows)
    else:  # which loadRes fails on
        found = COCO()
        found.dataset = truth.dataset | {"annotations": []}
        found.createIndex()
    evaluation = COCOeval(truth, found, iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return build_scores("coco", evaluation.stats, evaluation.eval["precision"][:, :, :, 0, -1])


def _lvis(dataset: Dataset, rows: list[Row], iou_type: str) -> Scores:
    with _old_numpy(), only_errors("lvis"):
        from lvis import LVIS, LVISEval, LVISResults

        path = str(dataset.annotation_path)
        truth = LVIS(path)
        content = truth.dataset
        check_annotations(content["annotations"], path)
        check_federation(dataset, content["categories"])
        if rows:
            found = LVISResults(truth, rows)
        else:  # which LVISResults fails on
            found = LVISResults.__new__(LVISResults)
            found.logger = truth.logger
            found.dataset = content | {"annotations": []}
            found._create_index()
        evaluation = LVISEval(truth, found, iou_type)
        evaluation.run()
    values = list(evaluation.get_results().values())
    return build_scores("lvis", values, evaluation.eval["precision"][:, :, :, 0])


@contextlib.contextmanager
def _old_numpy() -> Iterator[None]:
    """Give back ``numpy.float``, which lvis 0.5.3 uses and numpy 1.24 dropped, in the block."""
    import numpy

    old: Any = numpy
    if hasattr(numpy, "float"):
        yield
        return
    old.float = float
    try:
        yield
    finally:
        del old.float
