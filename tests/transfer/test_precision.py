"""16-bit training: what stays exact, the scale of float16, and its resume."""

from pathlib import Path

import pytest
import torch
from detectors import build_engine, rows_of_losses, twin_task
from tiny_engine import TinyEngine, state_of, tiny_batches, tiny_trainer

from sslbench.datasets import DataRoots
from sslbench.log import RunLog
from transfer.checkpoint import TrainingError
from transfer.detection import read_data
from transfer.loader import TrainingBatches
from transfer.precision import POOLERS, PREDICTORS
from transfer.trainer import Trainer

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.d2)]


def make_trainer(precision: str, layout: str, engine: str, data: DataRoots, folder: Path):
    folder.mkdir()
    task = twin_task(layout, engine, [f"precision={precision}"])
    built = build_engine(task, data, folder)
    records = read_data(task, data)[0].records
    batches = TrainingBatches(records, built.mapper, 2, 0, grouped=True)
    trainer = Trainer(built, batches, task, folder, RunLog(folder))
    built.model.train()
    return trainer, next(batches(0, 1))


def dtypes(value) -> set[torch.dtype]:
    if isinstance(value, torch.Tensor):
        return {value.dtype}
    if hasattr(value, "tensor"):  # Detectron2's boxes
        return {value.tensor.dtype}
    inner = value if isinstance(value, list | tuple) else ()
    return set().union(*(dtypes(item) for item in inner))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["c4", "fpn"])
@pytest.mark.parametrize("engine", ENGINES)
def test_in_bf16_networks_are_narrow_and_boxes_logits_and_losses_are_not(
    engine: str, layout: str, scenes: DataRoots, tmp_path: Path
):
    exact, batch = make_trainer("fp32", layout, engine, scenes, tmp_path / "fp32")
    narrow, _ = make_trainer("bf16", layout, engine, scenes, tmp_path / "bf16")
    modules = dict(narrow.engine.model.named_modules())
    seen: dict[str, set[torch.dtype]] = {}

    def watch(name: str) -> None:
        def note(module, inputs, output):
            part = output if name in PREDICTORS[engine] else inputs
            seen.setdefault(name, set()).update(dtypes(part))

        modules[name].register_forward_hook(note)

    named = [n for n in (*PREDICTORS[engine], *POOLERS[engine]) if n in modules]
    assert len(named) == (3 if layout == "c4" else 5)
    convolutions = [n for n, m in modules.items() if isinstance(m, torch.nn.Conv2d)][:3]
    outputs = set()
    for name in convolutions:
        modules[name].register_forward_hook(lambda _, inputs, output: outputs.add(output.dtype))
    for name in named:
        watch(name)
    terms, wanted = narrow.step(batch), exact.step(batch)
    assert outputs == {torch.bfloat16}
    assert seen == {name: {torch.float32} for name in named}
    for name in ("loss_rpn_cls", "loss_rpn_loc", "loss_cls"):
        assert terms[name] == pytest.approx(wanted[name], rel=0.03), name
    gradients = {p.grad.dtype for p in narrow.engine.model.parameters() if p.grad is not None}
    assert gradients == {torch.float32}


@pytest.mark.slow
def test_anchors_are_not_rounded(scenes: DataRoots, tmp_path: Path):
    trainer, batch = make_trainer("bf16", "c4", "torchvision", scenes, tmp_path / "run")
    anchors = []
    trainer.engine.model.proposals.anchor_generator.register_forward_hook(
        lambda _, inputs, output: anchors.append(output[0])
    )
    trainer.step(batch)
    trainer._losses(0, 0, batch, "fp32")
    assert anchors[0].dtype == torch.float32 and torch.equal(anchors[0], anchors[1])


def test_a_gradient_that_overflows_halves_the_scale_and_updates_nothing(tmp_path: Path):
    engine = TinyEngine()
    losses = engine.losses
    engine.losses = lambda batch: {k: v * 1e36 for k, v in losses(batch).items()}
    trainer = tiny_trainer(tmp_path, "precision=fp16", engine=engine)
    before = [p.clone() for p in engine.model.parameters()]
    (batch,) = tiny_batches(0, 1)
    terms = trainer.step(batch)
    assert all(value > 1e30 for value in terms.values())  # finite: no divergence
    assert trainer.scaler.values() == {"loss_scale": 2.0**15}
    for old, new in zip(before, engine.model.parameters(), strict=True):
        assert torch.equal(old, new)
    assert trainer.iteration == 1


def test_overflow_at_any_scale_ends_the_run(tmp_path: Path):
    engine = TinyEngine()
    losses = engine.losses
    engine.losses = lambda batch: {"loss_cls": (losses(batch)["loss_cls"] + 1e-3).log() * 1e38}
    trainer = tiny_trainer(tmp_path, "precision=fp16", "set.SOLVER.MAX_ITER=40", engine=engine)
    with pytest.raises(TrainingError, match=r"overflow float16 .*precision=bf16 or fp32"):
        trainer.train()


def test_a_loss_that_is_not_finite_ends_a_run_in_fp16_too(tmp_path: Path):
    engine = TinyEngine()
    losses = engine.losses
    engine.losses = lambda batch: {k: v * torch.inf for k, v in losses(batch).items()}
    with pytest.raises(TrainingError, match="not finite at iteration 0"):
        tiny_trainer(tmp_path, "precision=fp16", engine=engine).train()


def test_a_run_in_fp16_continues_bit_for_bit_with_its_scale(tmp_path: Path):
    def trainer(name: str, fails_at: int = 99):
        engine, calls = TinyEngine(), []
        losses = engine.losses

        def some_overflow(batch):
            calls.append(1)
            if len(calls) == fails_at:
                raise ZeroDivisionError
            big = batch[0].mean() > 0  # a fact of the batch: the same after a resume
            return {k: v * (1e36 if big else 1) for k, v in losses(batch).items()}

        engine.losses = some_overflow
        return tiny_trainer(tmp_path / name, "precision=fp16", engine=engine)

    whole = trainer("whole")
    whole.train()
    with pytest.raises(ZeroDivisionError):  # saved at 3 and 6
        trainer("killed", fails_at=8).train()
    again = trainer("killed")
    again.resume()
    assert again.iteration == 6 and again.scaler.values()["loss_scale"] < 2.0**16
    again.train()
    assert again.scaler.state_dict() == whole.scaler.state_dict()
    for name, value in state_of(whole).items():
        assert torch.equal(value, state_of(again)[name]), name
    assert rows_of_losses(tmp_path / "whole") == rows_of_losses(tmp_path / "killed")


def test_statistics_and_losses_outside_training_are_float32(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, "precision=bf16")
    seen = set()
    trainer.engine.model[0].register_forward_hook(lambda _, x, output: seen.add(output.dtype))
    trainer.calibrate_norms(1)
    assert seen == {torch.float32}


def test_in_fp32_a_checkpoint_holds_what_it_always_held(tmp_path: Path):
    trainer = tiny_trainer(tmp_path)
    trainer.save()
    state = torch.load(trainer.path, weights_only=True)
    assert set(state) == {"format", "version", "config", "model", "optimizer", "iteration"}
