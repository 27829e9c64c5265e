"""The evaluation benchmark's data and rows, on a few images."""

import json
from pathlib import Path

import pytest

from benchmarks.evaluation import largest_difference, medians
from benchmarks.evaluation_case import peak_megabytes, read_truth, run, write_case
from transfer.evaluators.reading import Predictions


@pytest.mark.parametrize("mode", ["default", "rows"])
def test_every_way_finds_the_numbers_of_the_reference(mode: str, tmp_path: Path):
    write_case(tmp_path / "coco", "coco", 6)
    found, theirs = (run(tmp_path / "coco", "coco", "mask", m) for m in (mode, "reference"))
    assert found["evaluator"].startswith("hotcoco")
    assert theirs["evaluator"].startswith("pycocotools")
    assert largest_difference(found["metrics"], theirs["metrics"]) < 1e-9
    assert 0 < found["evaluation"][0] <= found["from file"][0]


def test_the_data_have_all_sizes_crowds_ties_and_300_detections(tmp_path: Path):
    write_case(tmp_path / "lvis", "lvis", 16)
    dataset = read_truth(tmp_path / "lvis" / "truth.json")
    areas = [item.area for record in dataset.records for item in record.objects]
    assert min(areas) < 32**2 < 96**2 < max(areas) and len(dataset.classes) == 1203
    assert any(item.crowd for record in dataset.records for item in record.objects)
    path = tmp_path / "lvis" / "predictions.json"
    found = Predictions(path, dataset, ("box", "mask")).feed(list)
    assert sum(map(len, found)) == 16 * 300
    scores = [row["score"] for row in json.loads(path.read_text())]
    assert len(set(scores)) < len(scores)


def test_a_number_that_one_side_lacks_is_a_difference():
    assert largest_difference({"AP": 1.0, "AR": None}, {"AP": 1.5, "AR": None}) == 0.5
    assert largest_difference({"AP": None}, {"AP": 0.0}) == float("inf")


def test_memory_is_that_of_the_process_in_megabytes():
    assert 30 < peak_megabytes() < 30_000


def test_medians_keep_the_wall_and_the_processors_apart():
    runs = {"evaluation": [{"evaluation": [t, 2 * t]} for t in (1.0, 5.0, 2.0)]}
    assert medians(runs) == {"evaluation": 2.0, "evaluation cpu": 4.0}
