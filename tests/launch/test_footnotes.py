"""What a stage says about itself stands beside every number that builds on it."""

import json

import pytest

from launch.graph import plan
from launch.report.footnotes import inherited_notes
from launch.report.table import build_table
from launch.report.text import to_records
from launch.site import SiteConfig
from launch.submit import run_locally
from launch.suite import with_overrides

OURS, RANDOM = "Ours & <co>", "Random init."
FIRST, SECOND = (
    "pretraining departs from the fake: fusion average",
    "pretraining departs from the fake: batch 32",
)


@pytest.fixture
def departing(suite):
    return with_overrides(suite, ['departs=["fusion average", "batch 32"]'])


@pytest.fixture
def stages(departing, roots, tmp_path):
    planned = plan(departing, roots, tmp_path)
    run_locally(planned, SiteConfig(device="cpu"), roots, lambda text: None)
    return planned


def test_every_number_of_a_pretraining_carries_its_footnotes(departing, stages):
    table = build_table(departing, stages)
    for column in table.columns:
        assert table.entry(OURS, column).notes[-2:] == (FIRST, SECOND)
        assert not {FIRST, SECOND} & set(table.entry(RANDOM, column).notes)


def test_the_footnotes_of_a_pretraining_are_one_line_under_the_table(departing, stages):
    table = build_table(departing, stages)
    joined = "pretraining departs from the fake: fusion average; batch 32"
    assert joined in table.footnotes
    voc = [column for column in table.columns if column.task != "mask_quality"]
    assert {table.entry_mark(table.entry(OURS, c)) for c in voc} == {table.mark(joined)}
    assert {table.entry_mark(table.entry(RANDOM, c)) for c in voc} == {""}


def test_the_records_of_a_number_list_its_footnotes(departing, stages):
    first = to_records(build_table(departing, stages))[0]
    assert first["footnotes"][-2:] == [FIRST, SECOND]


def test_a_run_writes_its_footnotes_down_and_the_report_believes_them(departing, stages):
    path = stages[0].dir / "stage.json"
    record = json.loads(path.read_text())
    assert record["footnotes"] == [FIRST, SECOND]
    path.write_text(json.dumps({**record, "footnotes": ["as it was then"]}))
    table = build_table(departing, stages)
    assert table.entry(OURS, table.columns[0]).notes[-1] == "as it was then"


def test_a_run_that_wrote_none_down_gets_those_of_its_config(departing, stages):
    path = stages[0].dir / "stage.json"
    record = json.loads(path.read_text())
    del record["footnotes"]
    path.write_text(json.dumps(record))
    assert inherited_notes(stages)[stages[0].name] == (FIRST, SECOND)


def test_a_gap_has_no_footnote(departing, roots, tmp_path):
    table = build_table(departing, plan(departing, roots, tmp_path))
    assert table.footnotes == ()
