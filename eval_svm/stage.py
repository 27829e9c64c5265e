"""Stage: a checkpoint's frozen features are classified by linear SVMs on VOC07.

``python -m eval_svm CHECKPOINT --voc ROOT``
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from eval_svm.config import SVMConfig
from sslbench.datasets import ImageLabels, content_id, labelled_splits, only
from sslbench.files import read_json
from sslbench.results import Result, write_results
from sslbench.stage import StageContext, write_json

if TYPE_CHECKING:
    from eval_svm.features import Features
    from eval_svm.svm import ClassResult
    from sslbench.log import RunLog

PROTOCOL_VERSION = 1


class SVMError(ValueError):
    """Data on which the SVMs cannot be trained or tested."""


@dataclass(frozen=True)
class VOC07SVM:
    """checkpoint -> mAP over the classes, in both definitions of average precision."""

    kind: ClassVar[str] = "svm"
    version: ClassVar[int] = 2
    config_type: ClassVar[type[SVMConfig]] = SVMConfig
    config: SVMConfig

    @property
    def label(self) -> str:
        return self.config.task

    def needs(self) -> tuple[str, ...]:
        return (only("labels", self.config.train), only("labels", self.config.test))

    def departures(self) -> tuple[str, ...]:
        """What of the config leaves the published protocol."""
        return self.config.departures_from_protocol()

    def run(self, ctx: StageContext) -> dict[str, str]:
        from sslbench.checkpoint import load_backbone  # torch: not on the login node
        from sslbench.log import RunLog

        labels = labelled_splits(self.config.train, self.config.test, ctx.data)
        splits = dict(zip(("train", "test"), labels, strict=True))
        backbone = load_backbone(ctx.inputs["checkpoint"], branch=self.config.branch)
        with RunLog(ctx.dir) as log:
            features = self._features(backbone.build(), splits, ctx, log)
            classes = self._classes(features, splits, ctx.dir / "costs.json", log)
            results = self._results(classes, len(splits["test"].paths), ctx)
            for row in results:
                log.info(f"{row.metric} {row.value:.2f}")
        write_results(ctx.dir / "results.json", results)
        return {"results": "results.json", "classes": "costs.json"}

    def _features(
        self, network: Any, splits: dict[str, ImageLabels], ctx: StageContext, log: "RunLog"
    ) -> "dict[str, Features]":
        from eval_svm.features import extract, state_digest
        from sslbench.features import CentreCrops

        cfg = self.config
        before = state_digest(network)
        found = {
            name: extract(
                network,
                CentreCrops(labels.paths, cfg.resize, cfg.crop),
                ctx.dir / "features" / name,
                grid=cfg.grid,
                batch_size=cfg.batch_size,
                device=ctx.device,
                num_workers=ctx.num_workers,
                log=log,
            )
            for name, labels in splits.items()
        }
        assert state_digest(network) == before, "the frozen network changed"
        return found

    def _classes(
        self,
        features: "dict[str, Features]",
        splits: dict[str, ImageLabels],
        path: Path,
        log: "RunLog",
    ) -> "list[ClassResult]":
        """Evaluate every class, continuing after the ones that ``path`` holds."""
        from eval_svm.svm import ClassResult, Solver, as_dict, evaluate_classes

        names = splits["train"].classes
        done = [ClassResult(**item) for item in read_json(path)] if path.exists() else []
        fields = ("costs", "folds", "positive_weight", "tolerance", "max_iterations")
        solver = Solver(**{name: getattr(self.config, name) for name in fields})
        first = len(done)
        train, test = (
            (features[name], splits[name].matrix[:, first:]) for name in ("train", "test")
        )
        with log.progress(len(names), "SVMs", initial=first) as bar:

            def keep(result: "ClassResult") -> None:
                done.append(result)
                write_json(path, [as_dict(item) for item in done])
                log.info(describe(result))
                bar.advance()

            evaluate_classes(names[first:], train, test, solver, keep)
        return done

    def _results(
        self, classes: "list[ClassResult]", num_images: int, ctx: StageContext
    ) -> list[Result]:
        counted = [item for item in classes if not item.skipped]
        if not counted:
            reasons = "; ".join(f"{item.name}: {item.skipped}" for item in classes)
            raise SVMError(f"no class of {self.config.train} can be evaluated ({reasons})")
        shared: dict[str, Any] = {
            "task": self.config.task,
            "num_images": num_images,
            "data_id": content_id(only("labels", self.config.test), ctx.data),
            "task_version": PROTOCOL_VERSION,
            "engine": "liblinear",
            "footnotes": (*self.config.departures_from_protocol(), *_remarks(classes)),
        }
        return [
            Result(metric=metric, value=100 * _mean(counted, field), **shared)
            for metric, field in (("mAP", "ap"), ("mAP_envelope", "ap_envelope"))
        ]


def _mean(classes: "list[ClassResult]", field: str) -> float:
    values: list[float] = [getattr(item, field) for item in classes]
    return sum(values) / len(values)


def _remarks(classes: "list[ClassResult]") -> tuple[str, ...]:
    skipped = [item.name for item in classes if item.skipped]
    unfinished = [item.name for item in classes if not item.has_converged]
    remarks = []
    if skipped:
        remarks.append(f"{len(skipped)} of {len(classes)} classes skipped: {', '.join(skipped)}")
    if unfinished:
        remarks.append(f"liblinear stopped early for {', '.join(unfinished)}")
    return tuple(remarks)


def describe(result: "ClassResult") -> str:
    """Say one class's result in a line."""
    if result.skipped:
        return f"{result.name}: skipped, {result.skipped}"
    return f"{result.name}: AP {100 * (result.ap or 0):.2f} (C {result.cost:g})"
