"""A batch in parts: the gradient, the terms, and what cannot be shared."""

from pathlib import Path

import pytest
import torch
from detectors import build_engine, twin_task
from tiny_engine import TinyEngine, state_of, tiny_batches, tiny_trainer

from sslbench import dist
from sslbench.config import ConfigError
from sslbench.datasets import DataRoots
from sslbench.log import RunLog
from sslbench.memory import OutOfMemoryError
from sslbench.rng import seeded
from transfer.accumulation import require_shareable, shared_batch
from transfer.detection import read_data
from transfer.loader import TrainingBatches
from transfer.trainer import Trainer


def gradients(engine) -> list[torch.Tensor]:
    return [p.grad.clone() for p in engine.model.parameters()]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_the_gradient_is_the_mean_of_the_parts_gradients(accumulate: int, tmp_path: Path):
    trainer = tiny_trainer(tmp_path, f"accumulate={accumulate}")
    (batch,) = tiny_batches(0, 1)
    reference = TinyEngine()
    size, wanted, terms = 4 // accumulate, None, []
    for k in range(accumulate):
        reference.model.zero_grad()
        with seeded(0, "sampling", 0, k):
            losses = reference.losses(batch[k * size : (k + 1) * size])
        sum(losses.values()).backward()
        mine = [g / accumulate for g in gradients(reference)]
        wanted = mine if wanted is None else [a + b for a, b in zip(wanted, mine, strict=True)]
        terms.append(losses)
    said = trainer.step(batch)
    for ours, theirs in zip(gradients(trainer.engine), wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-8)
    for name, value in said.items():
        assert value == pytest.approx(sum(t[name].item() for t in terms) / accumulate)


def test_batch_norm_sees_one_part_at_a_time(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, "accumulate=2")
    seen = []
    trainer.engine.model[1].register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    (batch,) = tiny_batches(0, 1)
    trainer.step(batch)
    trainer.calibrate_norms(3)
    assert seen == [2] * (2 + 3 * 2)


def test_precise_statistics_of_parts_are_those_of_all_their_values(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, "accumulate=2")
    seen = []
    trainer.engine.model[1].register_forward_pre_hook(lambda _, x: seen.append(x[0].clone()))
    trainer.calibrate_norms(3)
    values = torch.cat(seen).transpose(0, 1).flatten(1)
    norm = trainer.engine.model[1]
    assert torch.allclose(norm.running_mean, values.mean(1), atol=1e-6)
    assert torch.allclose(norm.running_var, values.var(1, unbiased=False), atol=1e-6)


@pytest.mark.slow
def test_without_noise_and_batch_norm_the_proposals_losses_are_those_of_the_undivided_batch(
    scenes: DataRoots, tmp_path: Path
):
    """One picture four times, flipped or not, and every anchor sampled."""
    terms = {}
    for accumulate in (1, 2, 4):
        overrides = [
            "set.SOLVER.IMS_PER_BATCH=4",
            "set.MODEL.RESNETS.NORM=FrozenBN",
            "set.MODEL.RPN.BATCH_SIZE_PER_IMAGE=1000000",
            "set.INPUT.MIN_SIZE_TRAIN=[64]",
            f"accumulate={accumulate}",
        ]
        task = twin_task("c4", overrides=overrides)
        engine = build_engine(task, scenes, tmp_path)
        records = read_data(task, scenes)[0].records[:1] * 4
        batches = TrainingBatches(records, engine.mapper, 4, 0, grouped=False)
        trainer = Trainer(engine, batches, task, tmp_path, RunLog(tmp_path))
        trainer.engine.model.train()
        terms[accumulate] = trainer.step(next(batches(0, 1)))
    for name in ("loss_rpn_cls", "loss_rpn_loc"):
        assert terms[1][name] > 0
        assert terms[2][name] == pytest.approx(terms[1][name], rel=1e-5)
        assert terms[4][name] == pytest.approx(terms[1][name], rel=1e-5)


def test_one_part_draws_what_it_always_drew(tmp_path: Path):
    """The seed of an undivided step has no part in it: old runs go on."""
    trainer, reference = tiny_trainer(tmp_path), TinyEngine()
    (batch,) = tiny_batches(0, 1)
    with seeded(0, "sampling", 0):
        wanted = reference.losses(batch)
    assert trainer.step(batch) == pytest.approx({k: v.item() for k, v in wanted.items()}, abs=0)


def test_processes_must_share_the_batch_equally(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dist, "world_size", lambda: 3)
    recipe = twin_task("c4", overrides=["set.SOLVER.IMS_PER_BATCH=4"]).values()
    message = (
        r"set.SOLVER.IMS_PER_BATCH 4 cannot be shared equally by 3 processes with accumulate=1"
    )
    with pytest.raises(ConfigError, match=message):
        require_shareable(recipe, shared_batch(recipe, 1))


def test_a_norm_that_sees_one_process_alone_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    recipe = twin_task("c4", overrides=["set.MODEL.RESNETS.NORM=BN"]).values()
    with pytest.raises(ConfigError, match=r"MODEL.RESNETS.NORM 'BN' normalises over one process"):
        require_shareable(recipe, shared_batch(recipe, 1))


def test_a_gpu_that_is_too_small_is_told_the_parts_to_try(tmp_path: Path):
    engine = TinyEngine()

    def full(batch):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    engine.losses = full
    message = r"^4 images at a time do not fit.*accumulate=2 makes it 2 \(the same set.SOLVER"
    with pytest.raises(OutOfMemoryError, match=message):
        tiny_trainer(tmp_path, engine=engine).train()


def test_parts_and_whole_steps_differ_where_batch_norm_does(tmp_path: Path):
    states = []
    for accumulate in (1, 2):
        trainer = tiny_trainer(tmp_path / str(accumulate), f"accumulate={accumulate}")
        trainer.train()
        states.append(state_of(trainer))
    assert not torch.equal(states[0]["0.weight"], states[1]["0.weight"])
