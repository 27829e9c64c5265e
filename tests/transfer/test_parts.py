"""Predictions in parts: kills, processes and order."""

import json
from pathlib import Path

import pytest

from sslbench import dist
from transfer.evaluators.parts import PredictionParts
from transfer.evaluators.predictions import PredictionError, write_predictions

ROWS = {i: [{"image_id": i, "score": s / 7} for s in range(i % 3)] for i in range(6)}
MERGED = [row for index in range(6) for row in ROWS[index]]


def add(parts: PredictionParts, indices, monkeypatch: pytest.MonkeyPatch, rank: int = 0) -> None:
    monkeypatch.setattr(dist, "rank", lambda: rank)
    with parts.writer() as part:
        for index in indices:
            part.add(index, iter(ROWS[index]))


def test_parts_of_any_processes_merge_to_the_file_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parts = PredictionParts(tmp_path / "parts")
    add(parts, (4, 1), monkeypatch, rank=1)
    add(parts, (5, 0, 3, 2), monkeypatch, rank=0)
    parts.merge(6, tmp_path / "merged.json")
    write_predictions(tmp_path / "whole.json", MERGED)
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert json.loads((tmp_path / "merged.json").read_text()) == MERGED
    assert not parts.folder.exists()


def test_no_detection_at_all_is_an_empty_list(tmp_path: Path):
    write_predictions(tmp_path / "none.json", iter(()))
    assert (tmp_path / "none.json").read_text() == "[]\n"


@pytest.mark.parametrize("lost", range(1, 12))
def test_a_line_cut_short_is_not_there_and_is_written_over(
    lost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parts = PredictionParts(tmp_path / "parts")
    add(parts, (0, 1, 2), monkeypatch)
    (path,) = parts.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-lost])
    assert parts.done() == {0, 1}
    add(parts, (3, 4, 5, 2), monkeypatch)
    assert parts.done() == set(range(6))
    parts.merge(6, tmp_path / "merged.json")
    assert json.loads((tmp_path / "merged.json").read_text()) == MERGED


def test_an_image_without_a_line_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parts = PredictionParts(tmp_path / "parts")
    add(parts, (0, 1, 3, 4, 5), monkeypatch)
    with pytest.raises(PredictionError, match=r"1 of 6 images are not predicted.* number 2 "):
        parts.merge(6, tmp_path / "merged.json")
    assert not (tmp_path / "merged.json").exists() and len(parts.done()) == 5


def test_merging_holds_the_rows_of_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every line is read only when its place in the file is reached."""
    parts = PredictionParts(tmp_path / "parts")
    add(parts, (5, 4, 3, 2, 1, 0), monkeypatch)
    rows, read = parts._rows(6), []
    monkeypatch.setattr(
        "transfer.evaluators.parts.json.loads", lambda line: read.append(line) or json_loads(line)
    )
    assert next(rows) == MERGED[0] and len(read) == 2  # images 0 (no detection) and 1


json_loads = json.loads
