"""Stage: converted weights become a fine-tuned detector and its numbers on a test split.

``python -m transfer run voc_det_tiny --weights weights.pkl --data DIR``
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sslbench.catalog import lookup
from sslbench.datasets import DataError, DataRoots, Dataset, Record, read
from sslbench.stage import StageContext
from transfer.engines import ENGINES
from transfer.task import TaskConfig

if TYPE_CHECKING:
    from sslbench.log import RunLog
    from transfer.engines.base import Engine
    from transfer.engines.loading import Weights
    from transfer.trainer import Trainer

PREDICTIONS, FINAL = "predictions.json", "checkpoints/final.pt"
CLASSES, PICTURES = "classes.json", "detections.png"


@dataclass(frozen=True)
class Detection:
    """weights -> results, predictions, checkpoint.

    Each step leaves a file that a restart finds: checkpoints/last.pt while training, final.pt after
    the batch-norm statistics, predictions.json after inference.
    """

    kind: ClassVar[str] = "transfer"
    version: ClassVar[int] = 2  # 2: mask targets are cut as Detectron2 cuts them
    config_type: ClassVar[type[TaskConfig]] = TaskConfig
    config: TaskConfig

    @property
    def label(self) -> str:
        """The task's id."""
        return self.config.task

    def needs(self) -> tuple[str, ...]:
        """Training splits and the test split."""
        return (*self.config.train, self.config.test)

    def resolved(self) -> Self:
        """Pin engine and recipe."""
        return replace(self, config=self.config.resolved())

    def run(self, ctx: StageContext) -> dict[str, str]:
        """See ``Stage``."""
        from sslbench.log import RunLog
        from transfer.engines.loading import Weights

        weights = Weights.read(ctx.inputs["weights"])
        task = self.config.resolved().on_trunk(weights.depth, weights.width)
        with RunLog(ctx.dir) as log:
            train, test = read_data(task, ctx.data)
            notes = (*task.departures_from_protocol(), *weights.notes)
            log.info(f"task {task.task}: engine {task.engine}, test {len(test.records)} images")
            for note in notes:
                log.info(note)
            if not (ctx.dir / PREDICTIONS).exists():
                engine = self._detector(ctx, task, weights, train, log)
                self._predict(ctx, engine, test, log)
            self._evaluate(ctx, task, test, notes, log)
        return {
            "results": "results.json",
            "predictions": PREDICTIONS,
            "checkpoint": FINAL,
            "classes": CLASSES,
            "pictures": PICTURES,
        }

    def _detector(
        self,
        ctx: StageContext,
        task: TaskConfig,
        weights: "Weights",
        train: Dataset,
        log: "RunLog",
    ) -> "Engine":
        """The fine-tuned detector: from its final checkpoint, or trained up to it."""
        from transfer.trainer import load_checkpoint, save_checkpoint

        build = lookup(ENGINES, task.engine, "engine")
        engine: Engine = build(task, train.classes, weights, ctx.device)
        final = ctx.dir / FINAL
        if final.exists():
            engine.model.load_state_dict(load_checkpoint(final, task)["model"])
            return engine
        log.info(f"{len(engine.fresh)} tensors start fresh, all others come from {weights.path}")
        trainer = _trainer(ctx, task, engine, train, log)
        trainer.resume()
        trainer.train()
        recipe = task.values()
        if recipe["TEST.PRECISE_BN.ENABLED"]:
            trainer.calibrate_norms(recipe["TEST.PRECISE_BN.NUM_ITER"])
        state = {"model": engine.model.state_dict(), "iteration": trainer.iteration}
        save_checkpoint(final, task, state)
        return engine

    def _predict(self, ctx: StageContext, engine: "Engine", test: Dataset, log: "RunLog") -> None:
        from transfer.evaluators.predictions import rows_of, write_predictions
        from transfer.loader import TestSamples, loader

        engine.model.eval()
        rows: list[dict[str, Any]] = []
        samples = TestSamples(test.records, engine.mapper)
        singles = [[index] for index in range(len(samples))]
        with log.progress(len(samples), "predict") as bar:
            batches = loader(samples, singles, ctx.num_workers)
            for record, batch in zip(test.records, batches, strict=True):
                (detections,) = engine.predict(batch)
                rows += rows_of(record, detections, test)
                bar.advance(1)
        write_predictions(ctx.dir / PREDICTIONS, rows)

    def _evaluate(
        self,
        ctx: StageContext,
        task: TaskConfig,
        test: Dataset,
        notes: tuple[str, ...],
        log: "RunLog",
    ) -> None:
        from sslbench.results import write_results
        from transfer.evaluate import results_of, score, write_classes
        from transfer.evaluators import kinds_of
        from transfer.evaluators.reading import Predictions
        from transfer.pictures import draw_detections, pictured

        shown = pictured(test, task.num_pictures)
        ids = {record.image_id for record in shown}
        found = Predictions(ctx.dir / PREDICTIONS, test, kinds_of(task.kind), keep=ids)
        evaluation = score(task, found, test)
        results = results_of(task, evaluation, test, ctx.data, notes)
        draw_detections(ctx.dir / PICTURES, test, shown, found.kept)
        write_classes(ctx.dir / CLASSES, evaluation, found.num_rows)
        write_results(ctx.dir / "results.json", results)
        for note in evaluation.footnotes:
            log.info(note)
        said = "  ".join(f"{r.metric} {r.value:.2f}" for r in results[:6] if r.value is not None)
        log.info(f"{task.task} on {found.num_rows} detections by {evaluation.evaluator}: {said}")


def _trainer(
    ctx: StageContext, task: TaskConfig, engine: "Engine", train: Dataset, log: "RunLog"
) -> "Trainer":
    from transfer.loader import TrainingBatches
    from transfer.trainer import Trainer

    recipe = task.values()
    records = usable(train.records, log, drop_empty=recipe["DATALOADER.FILTER_EMPTY_ANNOTATIONS"])
    batches = TrainingBatches(
        records,
        engine.mapper,
        recipe["SOLVER.IMS_PER_BATCH"],
        task.seed,
        grouped=recipe["DATALOADER.ASPECT_RATIO_GROUPING"],
        num_workers=ctx.num_workers,
    )
    return Trainer(engine, batches, task, ctx.dir / "checkpoints", log)


def read_data(task: TaskConfig, roots: DataRoots) -> tuple[Dataset, Dataset]:
    """Read and join the training splits, and read the test split.

    Raises:
        DataError: the splits disagree on the classes, the recipe expects another number of them, or
        there is
            nothing to test on.
    """
    parts = [read(spec, roots) for spec in task.train]
    test = read(task.test, roots)
    for spec, part in zip((*task.train[1:], task.test), (*parts[1:], test), strict=True):
        if part.classes != parts[0].classes:
            raise DataError(
                f"task {task.task}: {spec} has the classes {', '.join(part.classes)}; "
                f"{task.train[0]} has {', '.join(parts[0].classes)}"
            )
    expected = task.values().given.get("MODEL.ROI_HEADS.NUM_CLASSES")
    if expected not in (None, len(test.classes)):
        raise DataError(
            f"task {task.task}: {task.test} has {len(test.classes)} classes, its recipe "
            f"{task.recipe} expects {expected}; if that is meant, say "
            f"set.MODEL.ROI_HEADS.NUM_CLASSES={len(test.classes)}"
        )
    if not any(record.objects for record in test.records):
        raise DataError(f"task {task.task}: {task.test} has no image with objects to test on")
    joined = tuple(record for part in parts for record in part.records)
    return replace(parts[0], records=joined), test


def usable(records: Sequence[Record], log: "RunLog", *, drop_empty: bool) -> tuple[Record, ...]:
    """Training records without boxes of zero area and images that then hold nothing.

    Raises:
        DataError: no image is left.
    """
    kept = []
    num_degenerate = 0
    for record in records:
        whole = tuple(o for o in record.objects if o.box[2] > o.box[0] and o.box[3] > o.box[1])
        num_degenerate += len(record.objects) - len(whole)
        if not drop_empty or any(not item.crowd for item in whole):
            kept.append(replace(record, objects=whole))
    if num_degenerate:
        log.info(f"{num_degenerate} boxes of zero area dropped from training")
    if len(kept) < len(records):
        log.info(f"{len(records) - len(kept)} training images without objects left out")
    if not kept:
        raise DataError("no training image has an object")
    return tuple(kept)
