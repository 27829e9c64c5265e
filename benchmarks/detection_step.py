"""Our fine-tuning loop against the loops it replaces, on the same recipe, data and machine.

    python -m benchmarks.detection_step --repeats 31

With the detectron2 engine: against Detectron2's own DefaultTrainer with its loader, mapper and
hooks. With the torchvision engine: against the bare loop of torchvision's detection references
(forward, sum, finite?, backward, step, schedule) over a plain DataLoader. An iteration is a batch
read, augmented, and learned from. Both loops of a pair see the same images at the same size in the
same order, on models that start equal; they take turns, and the ratio is of the two iterations of
one turn.
"""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.measure import hardware, interleaved, keep, median_with_interval, print_table
from sslbench.catalog import lookup
from sslbench.datasets import DataRoots, Record
from sslbench.log import Progress, RunLog
from sslbench.meter import Meter
from sslbench.resnet import ResNet
from sslbench.scenes.generate import SceneSettings, generate
from transfer.detection import read_data, usable
from transfer.engines import ENGINES
from transfer.engines.base import Draw, Engine
from transfer.engines.loading import Weights
from transfer.loader import TrainingBatches, index_stream
from transfer.naming import to_detectron2
from transfer.schedule import Schedule, parameter_groups
from transfer.task import TaskConfig, has_detectron2, load_task
from transfer.trainer import Trainer
from transfer.weights import write_weights

GOAL = 1.02
TASKS = ("voc_det_tiny", "coco_fpn_tiny")
OTHER = {"detectron2": "DefaultTrainer", "torchvision": "reference loop"}
NUM_SCENES = 64
# one size, one stream: both loops then do the same work in the same turn
COMPARABLE = (
    "set.INPUT.MIN_SIZE_TRAIN=[128]",
    "set.DATALOADER.ASPECT_RATIO_GROUPING=false",
    "set.SOLVER.MAX_ITER=100000",
    "set.SOLVER.STEPS=[60000,80000]",
)


class Order(Sampler[int]):
    """The order in which our loop reads the images."""

    def __init__(self, num_images: int, seed: int) -> None:
        self.num_images, self.seed = num_images, seed

    def __iter__(self) -> Iterator[int]:
        return index_stream(self.num_images, self.seed)


class Images(Dataset[Any]):
    """Training samples of the torchvision engine by image."""

    def __init__(self, records: Sequence[Record], engine: Engine, seed: int) -> None:
        self.records, self.engine, self.seed = records, engine, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        return self.engine.mapper.train(self.records[index], Draw(self.seed, 0, index))


def build(task: TaskConfig, classes: Sequence[str], folder: Path, device: str) -> Engine:
    """An engine of the task with random weights."""
    torch.manual_seed(0)
    width = task.values().width
    state = {k: v for k, v in ResNet(50, width).state_dict().items() if "num_batches" not in k}
    arrays = {name: value.numpy() for name, value in to_detectron2(state, task.layout).items()}
    path = folder / f"{task.task}_{task.engine}.pkl"
    write_weights(path, arrays, {"layout": task.layout, "depth": 50, "width": width})
    engine: Engine = lookup(ENGINES, task.engine, "engine")(
        task, classes, Weights.read(path), device
    )
    engine.model.train()
    return engine


def our_loop(
    task: TaskConfig, engine: Engine, records: Sequence[Record], log: RunLog, folder: Path
) -> Callable[[], object]:
    """One iteration of ours."""
    size = task.values()["SOLVER.IMS_PER_BATCH"]
    served = TrainingBatches(records, engine.mapper, size, task.seed, grouped=False)
    trainer = Trainer(engine, served, task, folder, log)
    meter, last = Meter(size, trainer.device), trainer.schedule.num_iterations
    batches = meter.timed(served(0, last))
    bar = Progress(last, "train")

    def step() -> None:
        trainer.record(trainer.step(next(batches)), meter, bar)

    return step


def reference_loop(
    task: TaskConfig, engine: Engine, records: Sequence[Record]
) -> Callable[[], object]:
    """One iteration as torchvision's detection references make it."""
    recipe = task.values()
    loader = DataLoader(
        Images(records, engine, task.seed),
        batch_size=recipe["SOLVER.IMS_PER_BATCH"],
        sampler=Order(len(records), task.seed),
        collate_fn=list,
    )
    # the same rates: a detector that has learned more finds more regions, which cost time
    optimizer = torch.optim.SGD(parameter_groups(engine.model, recipe), lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule.of(recipe).lr_at)
    batches = iter(loader)

    def step() -> None:
        losses = engine.losses(next(batches))
        total = torch.stack(list(losses.values())).sum()
        if not math.isfinite(total.item()):
            raise FloatingPointError(f"the loss is {total.item()}")
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()

    return step


def default_loop(
    task: TaskConfig, engine: Any, records: Sequence[Record], num_classes: int, folder: Path
) -> Any:
    """Detectron2's own loop with its own loader."""
    from detectron2.data import DatasetMapper, build_detection_train_loader

    from benchmarks.default_trainer import DefaultLoop
    from transfer.engines.detectron2 import build_config, dataset_dict

    cfg = build_config(task, num_classes, "cpu")
    batches = build_detection_train_loader(
        [dataset_dict(record) for record in records],
        mapper=DatasetMapper(cfg, is_train=True),
        sampler=Order(len(records), task.seed),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=0,
    )
    return DefaultLoop(task, engine, batches, num_classes, folder, with_hooks=True)


def compare(task: TaskConfig, data: DataRoots, folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds of both loops and the ratio of their turns."""
    train, _ = read_data(task, data)
    where = torch.device("cpu")
    with RunLog(folder) as log:
        records = usable(train.records, log, drop_empty=True)
        engine = build(task, train.classes, folder, "cpu")
        twin = copy.copy(engine)
        twin.model = copy.deepcopy(engine.model)
        ours = our_loop(task, engine, records, log, folder)
        if task.engine == "torchvision":
            other = reference_loop(task, twin, records)
            seconds = interleaved({"ours": ours, "other": other}, repeats, where)
        else:
            loop = default_loop(task, twin, records, len(train.classes), folder)
            with loop.training():
                seconds = interleaved({"ours": ours, "other": loop.step}, repeats, where)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["other"], strict=True)]
    ratio = median_with_interval(ratios)
    return {
        "task": task.task,
        "engine": task.engine,
        "against": OTHER[task.engine],
        "ours s": median_with_interval(seconds["ours"])["median"],
        "other s": median_with_interval(seconds["other"])["median"],
        "ratio": ratio["median"],
        "low": ratio["low"],
        "high": ratio["high"],
        "goal": GOAL,
    }


def main(
    repeats: Annotated[int, typer.Option(min=15, help="Timed turns of each pair.")] = 31,
    name: Annotated[str, typer.Option(help="Write benchmarks/results/NAME.json.")] = "",
) -> None:
    """Print seconds per iteration, and the ratio with its 95 % interval."""
    engines = ["detectron2", "torchvision"] if has_detectron2() else ["torchvision"]
    if "detectron2" not in engines:
        print("Detectron2 is not installed: only the torchvision engine is measured")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        data = DataRoots(Path(scratch) / "data")
        generate(data.root, SceneSettings(num_train=NUM_SCENES, num_test=2))
        for engine in engines:
            for task_name in TASKS:
                task = load_task(task_name, [f"engine={engine}", *COMPARABLE]).resolved()
                folder = Path(scratch) / f"{engine}_{task_name}"
                folder.mkdir()
                rows.append(compare(task, data, folder, repeats))
    print_table(rows)
    if name:
        keep(name, {"hardware": hardware(torch.device("cpu")), "repeats": repeats, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
