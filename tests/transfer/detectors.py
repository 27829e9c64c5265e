"""Thin detectors with random weights, and the run of a detection stage."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sslbench.catalog import lookup
from sslbench.datasets import DataRoots
from sslbench.log import read_metrics
from sslbench.resnet import ResNet
from sslbench.stage import run_standalone
from transfer.detection import Detection, read_data
from transfer.engines import ENGINES
from transfer.engines.base import Engine
from transfer.engines.loading import Weights
from transfer.naming import to_detectron2
from transfer.task import TaskConfig, load_task
from transfer.weights import write_weights

TWINS = {"c4": "voc_det_twin", "fpn": "coco_fpn_twin"}


def write_random_weights(path: Path, layout: str, width: float = 0.125, depth: int = 50) -> Path:
    """Converted weights of a trunk that looks trained: norms with statistics and scales."""
    torch.manual_seed(5)
    trunk = ResNet(depth, width)
    for _ in range(2):
        trunk(torch.randn(4, 3, 64, 64))
    state = {k: v for k, v in trunk.state_dict().items() if "num_batches" not in k}
    arrays = {name: value.numpy() for name, value in to_detectron2(state, layout).items()}
    write_weights(path, arrays, {"layout": layout, "depth": depth, "width": width})
    return path


def twin_task(
    layout: str, engine: str = "torchvision", overrides: Sequence[str] = ()
) -> TaskConfig:
    """The resolved twin of a layout."""
    return load_task(TWINS[layout], [f"engine={engine}", *overrides]).resolved()


def build_engine(
    task: TaskConfig,
    data: DataRoots,
    folder: Path,
    *,
    classes: Sequence[str] = (),
    device: str = "cpu",
) -> Engine:
    """An engine with random weights for a task; its classes are the data's unless given."""
    recipe = task.values()
    depth = recipe["MODEL.RESNETS.DEPTH"]
    path = write_random_weights(folder / f"{task.layout}.pkl", task.layout, recipe.width, depth)
    engine: Engine = lookup(ENGINES, task.engine, "engine")(
        task, classes or read_data(task, data)[0].classes, Weights.read(path), device
    )
    return engine


def run_detection(
    task: TaskConfig, data: DataRoots, weights: Path, out: Path, num_workers: int = 0
) -> Path:
    """Run the stage in ``out``."""
    stage_dir, _ = run_standalone(
        Detection(task), inputs={"weights": weights}, data=data, out=out, num_workers=num_workers
    )
    return stage_dir


MEASURED = ("images_per_second", "seconds_waiting_for_data", "share_waiting_for_data")


def rows_of_losses(folder: Path) -> list[dict]:
    """Rows of metrics.jsonl without what depends on the machine's mood."""
    left_out = (*MEASURED, "peak_memory_gib")
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in left_out} for row in rows]
