"""The loop: learning rate, batches, batch-norm statistics, exact resume."""

import math
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from detectors import build_engine, rows_of_losses, twin_task
from torch import nn

from sslbench.datasets import DataRoots
from sslbench.log import RunLog
from transfer.checkpoint import TrainingError, load_checkpoint
from transfer.detection import read_data
from transfer.loader import TrainingBatches, batch_stream
from transfer.precise_bn import precise_bn
from transfer.schedule import Schedule, parameter_groups
from transfer.task import TaskConfig
from transfer.trainer import Trainer


def test_the_learning_rate_warms_up_and_steps_down():
    schedule = Schedule(100, 0.02, (60, 80), 0.1, 10, 0.001)
    assert schedule.lr_at(0) == pytest.approx(0.02 * 0.001)
    assert schedule.lr_at(5) == pytest.approx(0.02 * (0.001 * 0.5 + 0.5))
    assert [schedule.lr_at(i) for i in (10, 59, 60, 79, 80, 99)] == pytest.approx(
        [0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002]
    )


@pytest.mark.d2
def test_the_learning_rate_is_detectron2s():
    from detectron2.config import get_cfg
    from detectron2.solver import build_lr_scheduler

    cfg = get_cfg()
    task = twin_task("c4")
    cfg.SOLVER.merge_from_list(
        [
            "MAX_ITER",
            8,
            "STEPS",
            (6,),
            "WARMUP_ITERS",
            2,
            "BASE_LR",
            task.values()["SOLVER.BASE_LR"],
        ]
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    theirs = build_lr_scheduler(cfg, optimizer)
    schedule = Schedule.of(task.values())
    for iteration in range(8):
        assert schedule.lr_at(iteration) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_every_epoch_sees_every_image_once():
    stream = batch_stream([0] * 10, 5, seed=3)
    epochs = [[*next(stream), *next(stream)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_batches_hold_images_of_one_orientation():
    groups = [0, 1, 1, 0, 1, 0, 0]
    batches = list(islice(batch_stream(groups, 2, seed=0), 40))
    assert all(len({groups[i] for i in batch}) == 1 for batch in batches)
    counts = Counter(i for batch in batches for i in batch)
    assert max(counts.values()) - min(counts.values()) <= 2  # nobody is left waiting


def test_a_resumed_stream_of_batches_goes_on_where_it_was(scenes: DataRoots):
    task = twin_task("c4")
    records = read_data(task, scenes)[0].records

    class Names:
        def train(self, record, draw):
            return record.image_id, draw.iteration, draw.slot

        test = None

    batches = TrainingBatches(records, Names(), 2, 0, grouped=True)
    whole = list(batches(0, 12))
    assert whole[7:] == list(batches(7, 12))
    assert [[slot for _, _, slot in batch] for batch in whole] == [[0, 1]] * 12


def test_norms_have_a_weight_decay_of_their_own():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    others, norms = parameter_groups(model, twin_task("c4").values())
    assert [p.ndim for p in others["params"]] == [4, 1] and others["weight_decay"] == 1e-4
    assert len(norms["params"]) == 2 and norms["weight_decay"] == 0.0


def test_precise_statistics_are_those_of_all_values_together():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    batches = [torch.randn(size, 3) * 2 + 1 for size in (4, 16, 7)]
    assert precise_bn(norm, lambda i, x: norm(x), enumerate(batches)) == 1
    together = torch.cat(batches)
    assert torch.allclose(norm.running_mean, together.mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, together.var(0, unbiased=False), atol=1e-5)
    assert norm.momentum == 0.1


@pytest.mark.d2
def test_precise_statistics_are_fvcores():
    from fvcore.nn.precise_bn import update_bn_stats

    torch.manual_seed(0)
    ours, theirs = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    batches = [torch.randn(size, 3, 2, 2) + 1 for size in (4, 16, 7)]
    precise_bn(ours, lambda i, x: ours(x), enumerate(batches))
    update_bn_stats(theirs, iter(batches), 3)
    assert torch.allclose(ours.running_mean, theirs.running_mean, atol=1e-6)
    assert torch.allclose(ours.running_var, theirs.running_var, atol=1e-6)


def make_trainer(task: TaskConfig, data: DataRoots, folder: Path) -> Trainer:
    folder.mkdir(exist_ok=True)
    engine = build_engine(task, data, folder)
    records = read_data(task, data)[0].records
    batches = TrainingBatches(records, engine.mapper, 2, task.seed, grouped=True)
    return Trainer(engine, batches, task, folder, RunLog(folder))


ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.d2)]


@pytest.mark.parametrize("layout", ["c4", "fpn"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_run_continues_bit_for_bit(
    engine: str, layout: str, scenes: DataRoots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    task = twin_task(layout, engine, ["set.SOLVER.MAX_ITER=5", "set.SOLVER.STEPS=[4]"])
    whole = make_trainer(task, scenes, tmp_path / "whole")
    whole.train()

    killed = make_trainer(task, scenes, tmp_path / "killed")
    step = killed.step
    monkeypatch.setattr(
        killed, "step", lambda batch: step(batch) if killed.iteration < 4 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):  # saved at 3, dies after 4
        killed.train()
    torch.rand(5)  # another process has another global generator
    again = make_trainer(task, scenes, tmp_path / "killed")
    again.resume()
    assert again.iteration == 3
    again.train()

    for name, value in whole.engine.model.state_dict().items():
        assert torch.equal(value, again.engine.model.state_dict()[name]), name
    rows = [rows_of_losses(tmp_path / name) for name in ("whole", "killed")]
    assert rows[0] == rows[1] and rows[0][-1]["step"] == 4


def test_a_loss_that_is_not_finite_stops_the_run(scenes: DataRoots, tmp_path: Path):
    trainer = make_trainer(twin_task("c4"), scenes, tmp_path)
    trainer.engine.losses = lambda batch: {"loss_cls": torch.tensor(math.nan, requires_grad=True)}
    with pytest.raises(
        TrainingError, match=r"not finite at iteration 0 .*Lower set.SOLVER.BASE_LR"
    ):
        trainer.train()
    assert not trainer.path.exists()


def test_a_damaged_or_foreign_checkpoint_is_named(scenes: DataRoots, tmp_path: Path):
    trainer = make_trainer(twin_task("c4"), scenes, tmp_path)
    trainer.save()
    other = twin_task("c4", overrides=["set.SOLVER.BASE_LR=0.5"])
    with pytest.raises(TrainingError, match="made with another recipe"):
        load_checkpoint(trainer.path, other)
    trainer.path.write_bytes(trainer.path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"last.pt cannot be read"):
        trainer.resume()
