"""Generators, results, catalog and logs of the kernel."""

import random

import numpy as np
import pytest
import torch

from sslbench.catalog import CatalogError, lookup, resolve
from sslbench.log import RunLog, read_metrics
from sslbench.results import Result, read_all, read_results, write_results
from sslbench.rng import derive_seed, numpy_generator, seeded, torch_generator


def test_draws_depend_on_seed_purpose_and_indices_alone():
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1)
    assert len({derive_seed(0, "a", 1), derive_seed(1, "a", 1), derive_seed(0, "b", 1)}) == 3
    assert derive_seed(0, "a", 1, 2) != derive_seed(0, "a", 12)
    assert 0 <= derive_seed(-5, "a") < 2**63
    assert numpy_generator(0, "a").integers(1 << 60) == numpy_generator(0, "a").integers(1 << 60)
    assert torch.equal(
        torch.rand(3, generator=torch_generator(0, "a")),
        torch.rand(3, generator=torch_generator(0, "a")),
    )


def test_seeded_fixes_the_global_generators_and_restores_them():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    with seeded(0, "x", 3):
        inside = draw()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with seeded(0, "x", 3):
        assert draw() == inside
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_results_survive_the_disk_and_nan_is_not_evaluated(tmp_path):
    rows = [
        Result(task="voc0712_det", metric="AP", value=57.9, footnotes=("tiny",)),
        Result(task="voc0712_det", metric="AP50", value=float("nan")),
    ]
    write_results(tmp_path / "results.json", rows)
    assert read_results(tmp_path / "results.json") == rows
    assert rows[1].value is None
    assert rows[0].key == "voc0712_det.AP"


def test_only_finished_stages_have_results(tmp_path):
    for name in ("done", "running"):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name / "results.json", [Result(task="t", metric="m", value=1.0)])
    (tmp_path / "done/done.json").write_text("{}")
    assert [row.stage for row in read_all(tmp_path)] == ["done"]


def test_catalog_errors_name_what_is_missing():
    assert resolve("math:pi") == pytest.approx(3.14159, abs=1e-4)
    with pytest.raises(CatalogError, match="no module 'nowhere'"):
        resolve("nowhere:x")
    with pytest.raises(CatalogError, match="math has no 'tau_'"):
        resolve("math:tau_")
    with pytest.raises(CatalogError, match="must look like module:attribute"):
        resolve("math")
    with pytest.raises(CatalogError, match="did you mean 'kmeans'"):
        lookup({"kmeans": "math:pi"}, "kmean", "mask source")


def test_a_resumed_log_rewinds_and_survives_a_line_cut_short(tmp_path):
    with RunLog(tmp_path) as log:
        for step in range(4):
            log.scalars(step, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with RunLog(tmp_path) as log:
        log.rewind(2)
        log.scalars(2, loss=9.0)
        log.info("resumed")
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 0.0), (1, 1.0), (2, 9.0)]
    assert "resumed" in (tmp_path / "log.txt").read_text()


def test_progress_tells_position_and_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sslbench.log.HEARTBEAT_SECONDS", 0.0)
    with RunLog(tmp_path) as log, log.progress(4, "epoch 1", initial=2) as bar:
        bar.advance(loss=0.5)
    assert "epoch 1 3/4" in capsys.readouterr().err
