"""Suites of single cells: what they plan, and how the report sets them beside the paper."""

import csv
import io
import json
import re

import pytest
from rich.console import Console

from launch.graph import plan, select, survey
from launch.report import write_report
from launch.report.table import build_table
from launch.report.text import to_csv, to_latex, to_markdown, to_records
from launch.site import SiteConfig
from launch.submit import run_locally
from launch.suite import load_suite, with_checkpoint, with_overrides
from sslbench.config import ConfigError

CELLS = """
name = "cells"
base = "pretrain.toml"
[[task]]
id = "voc_det"
title = "VOC"
config = "voc_det.toml"
metrics = ["AP", "AP50"]
[[task]]
id = "voc07_svm"
stage = "svm"
config = "svm.toml"
metrics = ["mAP"]
[[cell]]
paper = "Table 2a"
label = "E = 3"
task = "voc_det"
set = { epochs = 3 }
reported = 58.0
[[cell]]
paper = "Table 2b"
label = "λ & <co>"
task = "voc_det"
set = { departs = ["lambda = 1"], epochs = 9 }
[[cell]]
paper = "Table 2a"
label = "E = 5"
task = "voc_det"
set = { epochs = 5 }
reported = 9.75
[[cell]]
paper = "Fig. 5"
label = "default"
"""
DEFAULT, LONGER, ODD = "Table 2a  E = 3", "Table 2a  E = 5", "Table 2b  λ & <co>"


@pytest.fixture
def cells_path(suite_path):
    path = suite_path.with_name("cells.toml")
    path.write_text(CELLS)
    return path


@pytest.fixture
def cells(cells_path):
    return load_suite(str(cells_path))


def run(suite, roots, runs):
    stages = plan(suite, roots, runs)
    run_locally(stages, SiteConfig(device="cpu"), roots, lambda text: None)
    return stages


def rows_of(stages, kind):
    return [{cell.row for cell in stage.serves} for stage in stages if stage.kind == kind]


def texts(table, row):
    return [table.entry(row, column).text for column in table.columns]


@pytest.mark.parametrize(
    ("written", "instead", "answer"),
    [
        ('task = "voc_det"\nset = { epochs = 5 }', 'task = "voc_dat"', "did you mean 'voc_det'"),
        ('label = "E = 5"', 'label = "E = 3"', "'Table 2a  E = 3' on voc_det is written twice"),
        ('label = "E = 5"', 'lable = "E = 5"', r"'cell\.2\.lable'; did you mean 'cell\.2\.label'"),
        ('base = "pretrain.toml"', "", "'Table 2a  E = 3' on voc_det changes .* base = PATH"),
        ('label = "default"', 'label = "default"\nreported = 1.0', "'reported' is a task's value"),
        ("[[cell]]", '[[row]]\nmethod = "Table 2a  E = 5"\nrandom = {}\n[[cell]]', "rename one"),
    ],
)
def test_a_wrong_cell_is_named_with_the_remedy(cells_path, written, instead, answer):
    assert written in CELLS
    cells_path.write_text(CELLS.replace(written, instead, 1))
    with pytest.raises(ConfigError, match=answer):
        load_suite(str(cells_path))


def test_a_base_that_nothing_changes_is_refused(suite_path):
    suite_path.write_text('base = "pretrain.toml"\n' + suite_path.read_text())
    with pytest.raises(ConfigError, match=r"add a \[\[cell\]\]"):
        load_suite(str(suite_path))


def test_a_wrong_change_names_its_cell(cells_path, roots, tmp_path):
    cells_path.write_text(CELLS.replace("epochs = 5", "epoch = 5"))
    with pytest.raises(ConfigError, match=r"'Table 2a  E = 5' sets it:\n.*did you mean 'epochs'"):
        plan(load_suite(str(cells_path)), roots, tmp_path)


def test_cells_that_are_the_same_pretraining_share_it(cells, roots, tmp_path):
    shared = rows_of(plan(cells, roots, tmp_path), "pretrain")
    assert shared == [{DEFAULT, "Fig. 5  default"}, {LONGER}, {ODD}]


def test_a_cell_meets_its_own_task_only(cells, roots, tmp_path):
    stages = plan(cells, roots, tmp_path)
    answered = [(cell.row, cell.task) for stage in stages for cell in stage.answers]
    assert answered == [(DEFAULT, "voc_det"), (LONGER, "voc_det"), (ODD, "voc_det")]


def test_a_row_beside_the_cells_meets_every_task(cells_path, roots, tmp_path):
    row = '[[row]]\nmethod = "r"\nrandom = {}\n[[task]]'
    cells_path.write_text(CELLS.replace("[[task]]", row, 1))
    stages = plan(load_suite(str(cells_path)), roots, tmp_path)
    answered = {cell.task for stage in stages for cell in stage.answers if cell.row == "r"}
    assert answered == {"voc_det", "voc07_svm"}


def test_seeds_repeat_cells(cells, roots, tmp_path):
    stages = plan(cells.model_copy(update={"seeds": 2}), roots, tmp_path)
    assert len(rows_of(stages, "pretrain")) == 6


def test_a_task_is_chosen_without_the_cells_that_are_only_pretrained(cells_path, roots, tmp_path):
    cells_path.write_text(CELLS + "set = { epochs = 7 }\n")
    stages = plan(load_suite(str(cells_path)), roots, tmp_path)
    assert {"Fig. 5  default"} in rows_of(stages, "pretrain")
    assert {"Fig. 5  default"} not in rows_of(select(stages, ["voc_det"]), "pretrain")
    assert {"Fig. 5  default"} in rows_of(select(stages, ["pretrain"]), "pretrain")


def test_a_cell_that_lacks_its_data_is_named(cells, roots, tmp_path):
    suite = with_overrides(cells, ["images=coco2017/train"])
    stages, missing = survey(suite, roots, tmp_path)
    assert not stages
    places = [cell.place for item in missing for cell in item.cells]
    assert places == [
        f"{DEFAULT} on voc_det",
        f"{LONGER} on voc_det",
        f"{ODD} on voc_det",
        "Fig. 5  default",
    ]


def test_an_override_changes_the_base_but_not_what_a_cell_sets(cells, roots, tmp_path):
    suite = with_overrides(cells, ["epochs=4", "seed=7"])
    found = {
        row: (stage.stage.config.epochs, stage.stage.config.seed)
        for stage in plan(suite, roots, tmp_path)
        if stage.kind == "pretrain"
        for row in {cell.row for cell in stage.serves}
    }
    assert found == {DEFAULT: (3, 7), LONGER: (5, 7), ODD: (9, 7), "Fig. 5  default": (4, 7)}


def test_a_given_checkpoint_takes_the_place_of_the_cells(cells, roots, tmp_path):
    file = tmp_path / "model.pth"
    file.write_bytes(b"weights")
    stages = plan(with_checkpoint(cells, file, "online"), roots, tmp_path)
    assert {(cell.row, cell.task) for stage in stages for cell in stage.answers} == {
        ("model", "voc_det"),
        ("model", "voc07_svm"),
    }


def test_published_values_stand_beside_ours_as_the_paper_prints_them(cells, roots, tmp_path):
    table = build_table(cells, run(cells, roots, tmp_path))
    assert [column.metric_title for column in table.columns] == ["AP", "reported", "AP50", "mAP"]
    assert texts(table, DEFAULT) == ["20.0", "58.0", "21.0", "–"]
    assert texts(table, LONGER) == ["20.0", "9.75", "21.0", "–"]
    assert texts(table, ODD) == ["20.0", "–", "21.0", "–"]


def test_the_rows_of_a_published_table_stand_together(cells, roots, tmp_path):
    table = build_table(cells, plan(cells, roots, tmp_path))
    assert table.sections == ((DEFAULT, LONGER), (ODD,), ("Fig. 5  default",))


def test_the_best_number_is_the_best_of_its_published_table(cells, roots, tmp_path):
    stages = run(cells, roots, tmp_path)
    for value, stage in zip((1.0, 2.0, 3.0), [s for s in stages if s.answers], strict=True):
        path = stage.dir / "results.json"
        rows = json.loads(path.read_text())
        path.write_text(json.dumps([{**row, "value": value} for row in rows]))
    table = build_table(cells, stages)
    best = {entry.row for (_, column), entry in table.entries.items() if entry.best}
    assert best == {LONGER}


def test_the_printed_table_names_table_and_value(cells, roots, tmp_path, capsys):
    write_report(cells, run(cells, roots, tmp_path), tmp_path, Console())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["Table", "2a", "E", "=", "5", "20.0", "9.75", "21.0", "–"] in lines


def test_markdown_and_latex_have_as_many_cells_as_the_head(cells, roots, tmp_path):
    table = build_table(cells, run(cells, roots, tmp_path))
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {6}
    assert "| VOC AP<sup>a</sup> | VOC reported | VOC AP50<sup>a</sup> |" in lines[0]
    latex = to_latex(table)
    assert latex.count(r"\midrule") == 3  # one before each published table
    assert {line.count(" & ") for line in latex.splitlines() if line.startswith("Table 2")} == {4}
    assert r"$\lambda$ \& \textless{}co" in latex


def test_records_carry_the_published_value_of_their_own_metric(cells, roots, tmp_path):
    table = build_table(cells, run(cells, roots, tmp_path))
    reported = {(r["row"], r["metric"]): r["reported"] for r in to_records(table)}
    assert reported[DEFAULT, "AP"] == 58.0
    assert [v for v in reported.values() if v is not None] == [58.0, 9.75]
    assert next(csv.DictReader(io.StringIO(to_csv(table))))["reported"] == "58.0"


def test_the_page_shows_published_values_and_links_only_ours(cells, roots, tmp_path):
    page = write_report(cells, run(cells, roots, tmp_path), tmp_path, Console(quiet=True))
    text = page.read_text()
    assert re.search(r'class="published">9\.75</td>', re.sub(r"\s*\n\s*", "", text))
    assert text.count("<tbody>") == 3 and "<co>" not in text
    links = set(re.findall(r'href="#(p-[^"]+)"', text))
    assert links and links <= set(re.findall(r'id="(p-[^"]+)"', text))


def test_what_a_cell_changes_on_purpose_is_its_label_and_no_footnote(cells, roots, tmp_path):
    suite = with_overrides(cells, ['departs=["batch = 2"]'])
    table = build_table(suite, run(suite, roots, tmp_path))
    notes = {row: table.entry(row, table.columns[0]).notes for row in table.rows}
    assert "pretraining departs from the fake: batch = 2" in notes[DEFAULT]
    assert not any("lambda" in note for note in notes[ODD])
