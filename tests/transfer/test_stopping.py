"""Signals in the loop: the step is finished and saved, and the same command goes on."""

import os
import signal
from pathlib import Path

import pytest
import torch
from detectors import rows_of_losses
from tiny_engine import TinyEngine, state_of, tiny_trainer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_the_step_and_the_resume_is_bit_equal(
    number: signal.Signals, tmp_path: Path
):
    whole = tiny_trainer(tmp_path / "whole")
    whole.train()

    engine = TinyEngine()
    losses, calls = engine.losses, []

    def signalled(batch):
        calls.append(1)
        if len(calls) == 5:  # within the fifth step
            os.kill(os.getpid(), number)
        return losses(batch)

    engine.losses = signalled
    stopped = tiny_trainer(tmp_path / "stopped", engine=engine)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert stopped.iteration == 5 and len(calls) == 5
    assert torch.load(stopped.path, weights_only=True)["iteration"] == 5
    again = tiny_trainer(tmp_path / "stopped")
    again.resume()
    again.train()
    for name, value in state_of(whole).items():
        assert torch.equal(value, state_of(again)[name]), name
    assert rows_of_losses(tmp_path / "whole") == rows_of_losses(tmp_path / "stopped")


def test_the_handlers_of_before_are_back_after_training(tmp_path: Path):
    before = signal.getsignal(signal.SIGTERM)
    tiny_trainer(tmp_path).train()
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_step_costs_is_logged(tmp_path: Path):
    from sslbench.log import read_metrics

    tiny_trainer(tmp_path).train()
    row = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert row["step"] == 7 and row["images_per_second"] > 0 and row["peak_memory_gib"] > 0.01
    assert 0 <= row["share_waiting_for_data"] <= 1


def test_observing_comes_after_a_save_and_never_after_the_last_iteration(tmp_path: Path):
    trainer, seen = tiny_trainer(tmp_path), []

    def observe(iteration: int) -> None:
        saved = torch.load(trainer.path, weights_only=True)["iteration"]
        seen.append((iteration, saved, trainer.iteration))

    trainer.train(observe, every=2)
    assert seen == [(2, 2, 2), (4, 4, 4), (6, 6, 6)]


def test_a_run_killed_while_it_observed_observes_again(tmp_path: Path):
    trainer = tiny_trainer(tmp_path)
    with pytest.raises(ZeroDivisionError):
        trainer.train(lambda iteration: 1 / 0, every=4)
    again, seen = tiny_trainer(tmp_path), []
    again.resume()
    again.train(seen.append, every=4)
    assert seen == [4]
