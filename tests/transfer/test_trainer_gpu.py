"""Training on a GPU: float16 and its scale, bfloat16, memory, norms."""

from pathlib import Path

import pytest
import torch
from detectors import build_engine, rows_of_losses, twin_task
from tiny_engine import TinyEngine, tiny_batches

from sslbench.datasets import DataRoots
from sslbench.log import RunLog, read_metrics
from transfer.detection import read_data
from transfer.loader import TrainingBatches
from transfer.trainer import Trainer

pytestmark = pytest.mark.gpu
ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.d2)]


def make_trainer(
    precision: str, layout: str, engine: str, data: DataRoots, folder: Path, *overrides: str
) -> Trainer:
    folder.mkdir(exist_ok=True)
    task = twin_task(layout, engine, [f"precision={precision}", *overrides])
    built = build_engine(task, data, folder, device="cuda")
    records = read_data(task, data)[0].records
    batches = TrainingBatches(records, built.mapper, 2, 0, grouped=True)
    return Trainer(built, batches, task, folder, RunLog(folder))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("layout", ["c4", "fpn"])
@pytest.mark.parametrize("engine", ENGINES)
def test_16_bits_begin_with_the_losses_of_32_and_reach_the_end(
    engine: str, layout: str, precision: str, scenes: DataRoots, tmp_path: Path
):
    for kind in ("fp32", precision):
        make_trainer(kind, layout, engine, scenes, tmp_path / kind).train()
    exact, narrow = (rows_of_losses(tmp_path / kind) for kind in ("fp32", precision))
    assert len(narrow) == len(exact)
    for name in ("loss_rpn_cls", "loss_rpn_loc", "loss_cls"):
        assert narrow[0][name] == pytest.approx(exact[0][name], rel=0.05), name
    assert ("loss_scale" in narrow[-1]) == (precision == "fp16")


def test_the_scale_of_float16_is_saved_and_continued(scenes: DataRoots, tmp_path: Path):
    trainer = make_trainer("fp16", "c4", "torchvision", scenes, tmp_path)
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 8.0})
    trainer.save()
    again = make_trainer("fp16", "c4", "torchvision", scenes, tmp_path)
    again.resume()
    assert again.scaler.values() == {"loss_scale": 8.0}
    again.train()
    assert again.scaler.values()["loss_scale"] <= 8.0


def test_an_overflow_in_float16_skips_the_step(tmp_path: Path):
    engine = TinyEngine()
    engine.model.cuda()
    losses = engine.losses
    engine.losses = lambda batch: {
        k: v * 1e36 for k, v in losses([x.cuda() for x in batch]).items()
    }
    task = twin_task("c4", overrides=["set.SOLVER.IMS_PER_BATCH=4", "precision=fp16"])
    trainer = Trainer(engine, tiny_batches, task, tmp_path, RunLog(tmp_path))
    before = [p.clone() for p in engine.model.parameters()]
    trainer.step(next(tiny_batches(0, 1)))
    assert trainer.scaler.values() == {"loss_scale": 2.0**15}
    for old, new in zip(before, engine.model.parameters(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_memory_of_the_gpu_is_logged(engine: str, scenes: DataRoots, tmp_path: Path):
    torch.cuda.reset_peak_memory_stats()
    make_trainer("fp32", "c4", engine, scenes, tmp_path, "set.SOLVER.MAX_ITER=2").train()
    row = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert row["peak_memory_gib"] == torch.cuda.max_memory_allocated() / 2**30
