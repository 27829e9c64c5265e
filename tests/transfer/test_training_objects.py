"""Which annotated objects are trained on: those of which some pixel is known."""

from dataclasses import replace
from pathlib import Path

import pytest
from detectors import twin_task

from sslbench.datasets import DataError, DataRoots, Dataset, Object, Record, read
from sslbench.log import RunLog
from transfer import detection


def test_objects_whose_polygons_enclose_nothing_are_left_out(tmp_path: Path):
    item = Object(0, (1, 1, 5, 5), 16, False, False, [[1, 1, 5, 1, 5, 5]], 1)
    record = Record(3, tmp_path / "x.jpg", 6, 8, (item, replace(item, segmentation=[])))
    with RunLog(tmp_path) as log:
        (kept,) = detection.usable([record], log, drop_empty=True)
    assert kept.objects == (item,)


def test_a_box_without_outline_is_refused_before_masks_are_trained(
    scenes: DataRoots, monkeypatch: pytest.MonkeyPatch
):
    def without_outline(spec: str, roots: DataRoots) -> Dataset:
        data = read(spec, roots)
        first, *rest = data.records
        bare = replace(first.objects[0], segmentation=None)
        return replace(data, records=(replace(first, objects=(bare,)), *rest))

    monkeypatch.setattr(detection, "read", without_outline)
    with pytest.raises(DataError, match="has a box but no segmentation, and masks"):
        detection.read_data(twin_task("fpn"), scenes)


def test_lines_about_odd_annotations_reach_the_run(
    scenes: DataRoots, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        detection, "read", lambda spec, roots: replace(read(spec, roots), notes=(f"odd {spec}",))
    )
    task = twin_task("c4")
    train, test = detection.read_data(task, scenes)
    assert train.notes == tuple(f"odd {spec}" for spec in task.train)
    assert test.notes == (f"odd {task.test}",)
