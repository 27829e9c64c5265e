"""Stages that do almost nothing, to test planning and running without torch."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sslbench.config import FrozenConfig, NotHashed
from sslbench.results import Result, write_results
from sslbench.stage import StageContext


class FakePretrainConfig(FrozenConfig):
    images: str = ""
    epochs: int = 2
    seed: int = 0
    departs: tuple[str, ...] = ()
    fail: Literal["", "user", "bug", "interrupt"] = ""
    store: Annotated[str, NotHashed] = ""

    @property
    def inputs(self) -> dict[str, Path]:
        return {"store": Path(self.store)} if self.store else {}


@dataclass(frozen=True)
class FakePretrain:
    kind: ClassVar[str] = "pretrain"
    version: ClassVar[int] = 1
    config_type: ClassVar[type] = FakePretrainConfig
    config: FakePretrainConfig

    @property
    def label(self) -> str:
        return "fake"

    def needs(self) -> tuple[str, ...]:
        return (self.config.images,) if self.config.images else ()

    def footnotes(self) -> tuple[str, ...]:
        return tuple(f"pretraining departs from the fake: {item}" for item in self.config.departs)

    def run(self, ctx: StageContext) -> dict[str, str]:
        _fail(self.config.fail)
        _hang(ctx.dir)
        _count_run(ctx.dir)
        (ctx.dir / "masks").mkdir(exist_ok=True)
        (ctx.dir / "masks" / "labels.bin").write_bytes(b"0")
        rows = [{"step": s, "epoch": 1 + s // 4, "loss": 3.0 / (1 + s)} for s in range(8)]
        (ctx.dir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        (ctx.dir / "last.pt").write_text(f"weights after {self.config.epochs} epochs")
        return {"checkpoint": "last.pt", "masks": "masks"}


class FakeRandomConfig(FrozenConfig):
    depth: int = 50
    width: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class FakeRandom:
    kind: ClassVar[str] = "random"
    version: ClassVar[int] = 1
    config_type: ClassVar[type] = FakeRandomConfig
    config: FakeRandomConfig

    @property
    def label(self) -> str:
        return f"r{self.config.depth}"

    def needs(self) -> tuple[str, ...]:
        return ()

    def run(self, ctx: StageContext) -> dict[str, str]:
        (ctx.dir / "checkpoint.pt").write_text("random")
        return {"checkpoint": "checkpoint.pt"}


class FakeConvertConfig(FrozenConfig):
    layout: Literal["c4", "fpn"]
    branch: Literal["online", "target"] = "online"
    rescale: float | None = None
    anchor_branch: str | None = None


@dataclass(frozen=True)
class FakeConvert:
    kind: ClassVar[str] = "convert"
    version: ClassVar[int] = 1
    config_type: ClassVar[type] = FakeConvertConfig
    config: FakeConvertConfig

    @property
    def label(self) -> str:
        return self.config.layout

    def needs(self) -> tuple[str, ...]:
        return ()

    def run(self, ctx: StageContext) -> dict[str, str]:
        _count_run(ctx.dir)
        text = ctx.inputs["checkpoint"].read_text()
        (ctx.dir / "weights.pkl").write_text(f"{text} as {self.config.layout}")
        return {"weights": "weights.pkl"}


class FakeTaskConfig(FrozenConfig):
    task: str = "fake_det"
    layout: Literal["c4", "fpn"] = "c4"
    engine: Literal["auto", "torchvision", "detectron2"] = "auto"
    train: str = ""
    metrics: tuple[str, ...] = ("AP",)
    seed: int = 0
    fail: Literal["", "user", "bug", "interrupt"] = ""
    departs: Annotated[tuple[str, ...], NotHashed] = ()
    strict: Annotated[bool, NotHashed] = False
    published_runs: Annotated[int, NotHashed] = 1


class Engine:
    """What "auto" means on this machine; tests change it."""

    installed: ClassVar[Literal["torchvision", "detectron2"]] = "torchvision"


@dataclass(frozen=True)
class FakeDetection:
    kind: ClassVar[str] = "transfer"
    version: ClassVar[int] = 1
    captions: ClassVar[dict[str, str]] = {"curve": "AP over <epochs>"}
    config_type: ClassVar[type] = FakeTaskConfig
    config: FakeTaskConfig

    @property
    def label(self) -> str:
        return self.config.task

    def needs(self) -> tuple[str, ...]:
        return (self.config.train,) if self.config.train else ()

    @property
    def published_runs(self) -> int:
        return self.config.published_runs

    def departures(self) -> tuple[str, ...]:
        return tuple(f"departs from the fake in {item}" for item in self.config.departs)

    def resolved(self) -> "FakeDetection":
        if self.config.engine != "auto":
            return self
        return FakeDetection(self.config.model_copy(update={"engine": Engine.installed}))

    def run(self, ctx: StageContext) -> dict[str, str]:
        _fail(self.config.fail)
        _count_run(ctx.dir)
        trained = "weights after" in next(iter(ctx.inputs.values())).read_text()
        write_results(
            ctx.dir / "results.json",
            [
                Result(
                    task=self.config.task,
                    metric=metric,
                    value=10.0 * (2 if trained else 1) + number + self.config.seed,
                    engine=self.config.engine,
                    num_images=40,
                    footnotes=("schedule cut to 10 steps",),
                )
                for number, metric in enumerate(self.config.metrics)
            ],
        )
        return {"results": "results.json"}


def _hang(folder: Path) -> None:
    """Wait to be killed, where a test asks for it."""
    if os.environ.get("FAKE_HANG"):
        (folder / "started").touch()
        time.sleep(60)


def _count_run(folder: Path) -> None:
    with (folder / "runs.txt").open("a") as file:
        file.write("x")


def _fail(how: str) -> None:
    if how == "user":
        raise ValueError("image 000005.jpg is truncated; copy it again")
    if how == "bug":
        raise RuntimeError("a bug of ours")
    if how == "interrupt":
        raise KeyboardInterrupt


FAKE_REFS = {
    "pretrain": "tests.launch.fakes:FakePretrain",
    "random": "tests.launch.fakes:FakeRandom",
    "mask_quality": "tests.launch.fakes:FakeDetection",
    "convert": "tests.launch.fakes:FakeConvert",
    "detection": "tests.launch.fakes:FakeDetection",
    "svm": "tests.launch.fakes:FakeDetection",
}
