"""Stage: converted weights become a fine-tuned detector and its numbers on a test split.

``python -m transfer run voc_det_tiny --weights weights.pkl --data DIR``
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from sslbench.catalog import lookup
from sslbench.datasets import DataError, DataRoots, Dataset, Object, Record, decode_rgb, read
from sslbench.stage import StageContext
from transfer.engines import ENGINES
from transfer.protocol import check, departures
from transfer.task import TaskConfig

if TYPE_CHECKING:
    from sslbench.interrupt import StopRequest
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
    the batch-norm statistics, predictions.parts during inference and predictions.json after it.
    """

    kind: ClassVar[str] = "transfer"
    parallel: ClassVar[bool] = True  # runs in as many processes as torchrun or srun starts
    version: ClassVar[int] = 3  # 3: proposals are ranked by their logits as in Detectron2
    config_type: ClassVar[type[TaskConfig]] = TaskConfig
    captions: ClassVar[dict[str, str]] = {
        "detections": "detections: left what is annotated, right what scored highest",
    }
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

    @property
    def published_runs(self) -> int:
        """Runs that published numbers are the mean of; a twin is compared with none."""
        is_twin = self.config.protocol not in ("", self.config.task)
        return 1 if is_twin else self.config.published_runs

    def departures(self) -> tuple[str, ...]:
        """What of the config leaves the published protocol; weights and data may add to it."""
        return departures(self.config.resolved())

    def run(self, ctx: StageContext) -> dict[str, str]:
        """See ``Stage``; a signal ends it as soon as what is done is saved."""
        from sslbench import dist
        from sslbench.interrupt import StopRequest
        from sslbench.log import RunLog
        from transfer.engines.loading import Weights
        from transfer.prediction import parts_of

        stop = StopRequest()
        with RunLog(ctx.dir) as log, stop.listening():
            with stop.now():
                weights = Weights.read(ctx.inputs["weights"])
                task = self.config.resolved().on_trunk(weights.depth, weights.width)
                train, test = read_data(task, ctx.data)
                notes = (*task.footnotes, *check(task, train, test), *weights.notes)
                log.info(f"task {task.task}: engine {task.engine}, test {len(test.records)} images")
                for note in (*train.notes, *test.notes, *notes):
                    log.info(note)
            dist.barrier()  # nobody predicts before everybody has looked
            if not (ctx.dir / PREDICTIONS).exists():
                engine = self._detector(ctx, task, weights, (train, test), log, stop)
                with stop.now():
                    self._predict(ctx, engine, test, log)
            with stop.now(), dist.patient_barrier() as wait:
                if dist.is_main():
                    parts_of(ctx.dir / PREDICTIONS).discard()  # a kill can come after their merging
                    self._evaluate(ctx, task, test, notes, log)
                wait()
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
        data: tuple[Dataset, Dataset],
        log: "RunLog",
        stop: "StopRequest",
    ) -> "Engine":
        """The fine-tuned detector: from its final checkpoint, or trained up to it."""
        from sslbench import dist
        from transfer.checkpoint import load_checkpoint, save_checkpoint
        from transfer.prediction import parts_of

        build = lookup(ENGINES, task.engine, "engine")
        final = ctx.dir / FINAL
        with stop.now():
            engine: Engine = build(task, data[0].classes, weights, ctx.device)
            is_trained = final.exists()
            dist.barrier()  # nobody writes it before everybody has looked
            if is_trained:
                engine.model.load_state_dict(load_checkpoint(final, task)["model"])
                return engine
            if not any(final.parent.glob("*.pt")):
                _require_readable(data[1].records[dist.rank() :: dist.world_size()])
            log.info(
                f"{len(engine.fresh)} tensors start fresh, all others come from {weights.path}"
            )
            trainer = _trainer(ctx, task, engine, data[0], log, stop)
        _train(ctx, trainer, data[1])
        recipe = task.values()
        with stop.now():
            if recipe["TEST.PRECISE_BN.ENABLED"]:
                trainer.calibrate_norms(recipe["TEST.PRECISE_BN.NUM_ITER"])
            if dist.is_main():
                parts_of(ctx.dir / PREDICTIONS).discard()  # of weights that are gone
                state = {"model": engine.model.state_dict(), "iteration": trainer.iteration}
                save_checkpoint(final, task, state)
            dist.barrier()
        return engine

    def _predict(self, ctx: StageContext, engine: "Engine", test: Dataset, log: "RunLog") -> None:
        from sslbench import dist
        from transfer.prediction import predict

        with dist.patient_barrier() as wait:
            predict(engine, test, ctx.dir / PREDICTIONS, log, wait, ctx.num_workers)

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


def _require_readable(records: Sequence[Record]) -> None:
    """Decode the test images before anything is learned.

    Found after the training, a damaged one would cost it: mending it makes other data, and a run
    folder belongs to its data.

    Raises:
        DataError: an image is damaged.
    """
    for record in records:
        decode_rgb(record.path.read_bytes(), str(record.path))


def _train(ctx: StageContext, trainer: "Trainer", test: Dataset) -> None:
    """Train to the last iteration, with evaluations in between where they are asked for."""
    from transfer.evaluate import score
    from transfer.evaluators import kinds_of
    from transfer.evaluators.reading import Predictions
    from transfer.watch import Watch

    task = trainer.task

    def numbers(path: Path) -> dict[str, float | None]:
        return score(task, Predictions(path, test, kinds_of(task.kind)), test).metrics

    trainer.resume()
    watch = Watch(trainer, test, ctx.dir, numbers, ctx.num_workers)
    watch.rewind()
    trainer.train(watch, task.evaluate_every)


def _trainer(
    ctx: StageContext,
    task: TaskConfig,
    engine: "Engine",
    train: Dataset,
    log: "RunLog",
    stop: "StopRequest",
) -> "Trainer":
    from transfer.loader import TrainingBatches
    from transfer.repeat_factors import sampling_factors
    from transfer.trainer import Trainer

    recipe = task.values()
    records = usable(train.records, log, drop_empty=recipe["DATALOADER.FILTER_EMPTY_ANNOTATIONS"])
    batches = TrainingBatches(
        records,
        engine.mapper,
        recipe["SOLVER.IMS_PER_BATCH"],
        task.seed,
        grouped=recipe["DATALOADER.ASPECT_RATIO_GROUPING"],
        factors=sampling_factors(recipe, records),
        num_workers=ctx.num_workers,
    )
    return Trainer(engine, batches, task, ctx.dir / "checkpoints", log, stop)


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
    if task.kind == "mask_rcnn":
        _require_outlines(task, joined)
    return replace(
        parts[0],
        records=joined,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        unofficial=tuple(line for part in parts for line in part.unofficial),
    ), test


def _require_outlines(task: TaskConfig, records: Sequence[Record]) -> None:
    for record in records:
        for item in record.objects:
            if item.segmentation is None and not item.crowd:
                raise DataError(
                    f"task {task.task}: annotation {item.annotation_id} of {record.path} has a box "
                    "but no segmentation, and masks are trained on; add it or remove the annotation"
                )


def usable(records: Sequence[Record], log: "RunLog", *, drop_empty: bool) -> tuple[Record, ...]:
    """Training records without boxes of zero area, objects whose polygons all enclose nothing, and
    images that then hold nothing: Detectron2 leaves these out too.

    Raises:
        DataError: no image is left.
    """
    kept = []
    num_degenerate = 0
    for record in records:
        whole = tuple(item for item in record.objects if _has_pixels(item))
        num_degenerate += len(record.objects) - len(whole)
        if not drop_empty or any(not item.crowd for item in whole):
            kept.append(replace(record, objects=whole))
    if num_degenerate:
        log.info(f"{num_degenerate} objects without any area dropped from training")
    if len(kept) < len(records):
        log.info(f"{len(records) - len(kept)} training images without objects left out")
    if not kept:
        raise DataError("no training image has an object")
    return tuple(kept)


def _has_pixels(item: Object) -> bool:
    left, top, right, bottom = item.box
    return right > left and bottom > top and item.segmentation != []
