"""The speed of masks: that both benchmarks run, on a small scale, and measure what they say."""

import importlib.util
from dataclasses import replace

import pytest

from benchmarks import bootstrap
from benchmarks import kmeans as kmeans_benchmark

needs_faiss = pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason="FAISS is not installed"
)


@pytest.fixture
def small(monkeypatch):
    ways = {
        name: replace(way, min_clusters=4, max_clusters=4, images_per_clustering=2)
        for name, way in bootstrap.WAYS.items()
    }
    for name, value in {"WAYS": ways, "SIZE": (48, 64), "GROUP": 2, "CLUSTERS": 4}.items():
        monkeypatch.setattr(bootstrap, name, value)
    monkeypatch.setattr(bootstrap.Bench, "_calibrate", lambda self: None)


@needs_faiss
def test_a_generation_is_timed_in_every_way_and_by_part(small, capsys):
    bootstrap.main(count=4, repeats=1)
    rows = capsys.readouterr().out.splitlines()
    for way in (*bootstrap.WAYS, bootstrap.RELEASED):
        assert any(row.strip().startswith(way) for row in rows)
    for part in ("decode", "forward", "k-means", "write"):
        assert sum(part in row for row in rows) == len(bootstrap.WAYS)


@needs_faiss
def test_other_sizes_than_the_report_speaks_of_are_refused(small, monkeypatch, tmp_path):
    bootstrap.make_pictures(tmp_path / "pictures", 2)
    monkeypatch.setattr(bootstrap, "SIZE", (48, 72))
    with pytest.raises(Exception, match="48, 64"):
        bootstrap.main(images=tmp_path / "pictures", count=2, repeats=1)


@pytest.fixture
def few_points(monkeypatch):
    values = {"NUM_POINTS": 3000, "CHANNELS": 16, "CLUSTERS": (2, 8)}
    for name, value in values.items():
        monkeypatch.setattr(kmeans_benchmark, name, value)


@needs_faiss
def test_both_backends_are_timed_for_every_k(few_points, capsys):
    kmeans_benchmark.main(repeats=1)
    said = capsys.readouterr().out
    assert said.count("ours") == said.count("faiss ") == 2


@needs_faiss
def test_backends_that_cluster_otherwise_are_not_compared(few_points, monkeypatch):
    monkeypatch.setitem(kmeans_benchmark.BACKENDS, "ours", lambda points, start, *_: start)
    with pytest.raises(AssertionError, match="not the same clustering"):
        kmeans_benchmark.main(repeats=1)
