"""Evaluations while training: they change nothing, and their last equals the final one."""

import json
from pathlib import Path

import pytest
import torch
from detectors import rows_of_losses, run_detection, twin_task, write_random_weights
from torch import nn

from sslbench.datasets import DataRoots
from sslbench.results import read_results
from transfer.watch import undisturbed

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.d2)]


def test_buffers_and_modes_are_given_back():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with undisturbed(model):
        model.train()
        model(torch.randn(5, 3))
        assert not torch.equal(model[0].running_mean, before["0.running_mean"])
    assert (model[0].training, model[1].training) == (True, False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_watching_changes_no_number_and_shows_what_the_end_would_have(
    engine: str, scenes: DataRoots, tmp_path: Path
):
    """A run of 4 iterations ends in what a longer one with the same start shows after 4."""
    weights = write_random_weights(tmp_path / "w.pkl", "fpn")
    shared = ["set.SOLVER.STEPS=[5]"]
    short = twin_task("fpn", engine, [*shared, "set.SOLVER.MAX_ITER=4"])
    plain = twin_task("fpn", engine, [*shared, "set.SOLVER.MAX_ITER=6"])
    watched = plain.model_copy(update={"evaluate_every": 2})
    runs = {"short": short, "plain": plain, "watched": watched}
    for name, task in runs.items():
        run_detection(task, scenes, weights, tmp_path / name)
    for made in ("predictions.json", "results.json"):
        assert (tmp_path / "plain" / made).read_bytes() == (
            tmp_path / "watched" / made
        ).read_bytes()
    plain_state, watched_state = (
        torch.load(tmp_path / name / "checkpoints/last.pt")["model"]
        for name in ("plain", "watched")
    )
    for name, value in plain_state.items():  # running statistics too
        assert torch.equal(value, watched_state[name]), name
    rows = {name: rows_of_losses(tmp_path / name) for name in runs}
    assert rows["plain"] == [row for row in rows["watched"] if "total" in row]

    history = json.loads((tmp_path / "watched/history.json").read_text())
    assert list(history) == ["2", "4"]
    final = {r.metric: r.value for r in read_results(tmp_path / "short/results.json")}
    assert history["4"] == {k: v for k, v in final.items() if v is not None}
    logged = [row["step"] for row in rows["watched"] if "eval_box_AP" in row]
    assert logged == [1, 3]
    assert not list((tmp_path / "watched").glob("predictions_*"))
    assert not (tmp_path / "plain/history.json").exists()
