"""Reports: every number in its place, every gap explained, every name escaped."""

import base64
import csv
import errno
import io
import json
import re
import subprocess
import time
from html.parser import HTMLParser

import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from launch import __main__ as command
from launch.graph import plan
from launch.report import write_report
from launch.report.page import _drawings
from launch.report.table import _joined, build_table
from launch.report.text import latex_escape, to_latex, to_markdown
from launch.site import SiteConfig
from launch.submit import run_locally
from launch.suite import with_checkpoint, with_overrides

OURS, RANDOM = "Ours & <co>", "Random init."


def run(suite, roots, runs, kinds=None):
    stages = plan(suite, roots, runs)
    chosen = [s for s in stages if kinds is None or s.kind in kinds]
    run_locally(chosen, SiteConfig(device="cpu"), roots, lambda text: None)
    return stages


def texts(table, row):
    return [table.entry(row, column).text for column in table.columns]


def test_numbers_stand_in_the_cell_of_their_row_and_metric(suite, roots, tmp_path):
    table = build_table(suite, run(suite, roots, tmp_path))
    assert texts(table, OURS) == ["20.0", "21.0", "20.0", "20.0", "21.0", "22.0"]
    assert texts(table, RANDOM) == ["10.0", "11.0", "10.0", "10.0", "–", "–"]


def test_a_pattern_takes_the_newest_generation(suite, roots, tmp_path):
    table = build_table(suite, run(suite, roots, tmp_path))
    column = next(c for c in table.columns if c.metric == "ari_kmeans_*")
    assert table.entry(OURS, column).results[0].metric == "ari_kmeans_0002"


def test_the_best_of_a_column_is_marked_and_a_lone_number_is_not(suite, roots, tmp_path):
    table = build_table(suite, run(suite, roots, tmp_path))
    best = [table.entry(OURS, column).best for column in table.columns]
    assert best == [True] * 4 + [False] * 2
    assert not any(table.entry(RANDOM, column).best for column in table.columns)


def test_empty_cells_say_why(suite, suite_path, roots, tmp_path):
    assert set(texts(build_table(suite, plan(suite, roots, tmp_path)), RANDOM)) == {"not run", "–"}
    svm = suite_path.with_name("svm.toml")
    svm.write_text(svm.read_text() + '\nfail = "user"')
    suite = with_overrides(suite, ["fail=user"])
    table = build_table(suite, run(suite, roots, tmp_path))
    assert texts(table, OURS)[0] == "blocked"  # its pretraining failed
    assert texts(table, RANDOM)[3] == "failed"


def test_several_seeds_give_mean_and_spread(suite, roots, tmp_path):
    suite = suite.model_copy(update={"seeds": 3, "repeat_from": "task"})
    table = build_table(suite, run(suite, roots, tmp_path))
    entry = table.entry(OURS, table.columns[0])
    assert entry.values == [20.0, 21.0, 22.0]  # the fake adds its seed
    assert entry.text == "21.0 ± 1.0"


def test_what_a_task_has_in_common_is_one_footnote_and_what_sets_a_number_apart_another(
    suite, roots, tmp_path
):
    stages = run(suite, roots, tmp_path)
    svm = next(s for s in stages if s.answers and s.answers[0].task == "voc07_svm")
    path = svm.dir / "results.json"
    rows = json.loads(path.read_text())
    rows[0]["footnotes"].append("C = 1 for every class")
    path.write_text(json.dumps(rows))
    table = build_table(suite, stages)
    common = "measured with the torchvision engine; schedule cut to 10 steps"
    assert table.footnotes == (common, "C = 1 for every class")
    assert table.task_mark("voc_det") == table.task_mark("voc07_svm") == "a"
    column = next(c for c in table.columns if c.task == "voc07_svm")
    assert table.entry_mark(table.entry(OURS, column)) == "b"
    assert table.entry_mark(table.entry(RANDOM, column)) == ""


def test_equal_numbers_have_no_best(suite, roots, tmp_path):
    row = suite.row[1].model_copy(update={"method": "Again", "random": {"depth": 34}})
    twice = suite.model_copy(update={"row": (suite.row[1], row)})
    table = build_table(twice, run(twice, roots, tmp_path))
    assert not any(entry.best for entry in table.entries.values())


def test_words_that_notes_share_are_said_once():
    notes = ["departs from x in data: a", "departs from x in schedule: b", "by hand"]
    assert _joined(notes) == "departs from x in data: a; schedule: b; by hand"


def test_every_format_is_written_and_the_table_printed(suite, roots, tmp_path, capsys):
    stages = run(suite, roots, tmp_path)
    page = write_report(suite, stages, tmp_path, Console())
    names = {p.name for p in page.parent.iterdir()}
    assert names == {"index.html", "table.md", "table.tex", "results.csv", "results.json"}
    with (page.parent / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["row"], rows[0]["metric"], rows[0]["value"]) == (OURS, "AP", "20.0")
    written = json.loads((page.parent / "results.json").read_text())
    assert (len(written["results"]), len(written["gaps"])) == (10, 2)
    printed = capsys.readouterr().out
    assert "20.0*" in printed and suite.banner in printed


@pytest.mark.parametrize("width", [60, 200])
def test_a_terminal_of_any_width_shows_every_number_whole(suite, roots, tmp_path, width):
    stages = run(suite, roots, tmp_path)
    console = Console(force_terminal=True, width=width, record=True, file=io.StringIO())
    write_report(suite, stages, tmp_path, console)
    shown = console.export_text()
    assert all(number in shown for number in ("20.0*", "21.0*", "22.0", "box AP"))


class Collector(HTMLParser):
    """Checks that tags nest and gathers what the page would load."""

    VOID = frozenset({"meta", "link", "img", "br", "use", "path"})

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_startendtag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_offline_and_escaped(suite, roots, tmp_path):
    stages = run(suite, roots, tmp_path)
    detection = next(s for s in stages if s.answers)
    Image.effect_noise((3000, 200), 60).save(detection.dir / "detections.png")
    page = write_report(suite, stages, tmp_path, Console(quiet=True)).read_text()
    collector = Collector()
    collector.feed(page)
    assert collector.open == []
    assert all(url.startswith(("#", "data:")) for url in collector.loads)
    assert any(url.startswith("data:image/jpeg") for url in collector.loads)
    assert "<co>" not in page and "<not>" not in page
    assert OURS in collector.text
    assert "loss" in collector.text  # the curve's title: text, not paths
    assert len(page) < 200_000


def pictures_of(suite, roots, tmp_path, **images):
    """Figures of the page of a run whose detection stage left ``images``."""
    stages = run(suite, roots, tmp_path)
    detection = next(s for s in stages if s.answers)
    for name, image in images.items():
        image.save(detection.dir / f"{name}.png")
    page = write_report(suite, stages, tmp_path, Console(quiet=True)).read_text()
    return re.findall(r"<figure.*?</figure>", page, re.DOTALL)


def test_a_picture_says_what_its_stage_says_of_it_or_its_name(suite, roots, tmp_path):
    square = Image.new("RGB", (50, 50))
    curve, other = pictures_of(suite, roots, tmp_path, curve=square, some_boxes=square)
    assert "<figcaption>Ours &amp; &lt;co&gt;: voc_det, AP over &lt;epochs&gt;</fig" in curve
    assert "<figcaption>Ours &amp; &lt;co&gt;: voc_det, some boxes</fig" in other


def test_wide_drawings_span_the_page_as_sharp_as_they_were_made(suite, roots, tmp_path):
    square, wide = Image.new("RGB", (400, 400)), Image.new("RGB", (1276, 341), "white")
    ImageDraw.Draw(wide).line((0, 0, 1276, 341))
    drawn, other = pictures_of(suite, roots, tmp_path, curve=wide, square=square)
    assert 'class="card wide"' in drawn and 'class="card"' in other
    shown = re.search(r'src="data:image/png;base64,([^"]+)"', drawn)[1]
    assert Image.open(io.BytesIO(base64.b64decode(shown))).tobytes() == wide.tobytes()


def test_every_number_links_to_a_provenance_that_exists(suite, roots, tmp_path):
    stages = run(suite, roots, tmp_path)
    page = write_report(suite, stages, tmp_path, Console(quiet=True)).read_text()
    links = set(re.findall(r'href="#(p-[^"]+)"', page))
    assert links and links <= set(re.findall(r'id="(p-[^"]+)"', page))


@pytest.mark.browser
def test_a_link_to_a_number_opens_its_provenance_in_a_browser(suite, roots, tmp_path):
    stages = run(suite, roots, tmp_path)
    page = write_report(suite, stages, tmp_path, Console(quiet=True))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    shown = subprocess.run(
        ["chromium", *flags, f"file://{page}#p-0-voc_det"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert '<details id="p-0-voc_det" open' in shown
    assert '<details id="p-1-voc_det">' in shown


def test_a_failure_shows_its_reason_and_log_in_the_page(suite, roots, tmp_path):
    suite = with_overrides(suite, ["fail=user"])
    stages = run(suite, roots, tmp_path)
    page = write_report(suite, stages, tmp_path, Console(quiet=True)).read_text()
    assert "image 000005.jpg is truncated" in page
    assert str(stages[0].dir / "log.txt") in page


def test_a_report_of_nothing_yet_is_a_report(suite, roots, tmp_path):
    page = write_report(suite, plan(suite, roots, tmp_path), tmp_path, Console(quiet=True))
    assert "not run" in page.read_text()


def test_an_imported_checkpoint_has_no_curve_but_a_row(suite, roots, tmp_path):
    file = tmp_path / "model.pth"
    file.write_text("weights after all")
    given = with_checkpoint(suite, file, "online")
    stages = run(given, roots, tmp_path)
    table = build_table(given, stages)
    assert texts(table, "model")[:2] == ["20.0", "21.0"]
    page = write_report(given, stages, tmp_path, Console(quiet=True)).read_text()
    assert "Pretraining</h2>" not in page


def test_latex_special_characters_are_escaped_and_braces_balance(suite, roots, tmp_path):
    assert latex_escape("a_b & 50% {x} ^~\\") == (
        r"a\_b \& 50\% \{x\} \textasciicircum{}\textasciitilde{}\textbackslash{}"
    )
    latex = to_latex(build_table(suite, run(suite, roots, tmp_path)))
    assert latex.count("{") - latex.count(r"\{") == latex.count("}") - latex.count(r"\}")
    widths = [line.count(" & ") for line in latex.splitlines() if line.endswith(r" \\")][1:]
    assert widths == [6, 6, 6]
    assert r"\toprule" in latex and r"\textbf{20.0}" in latex


def test_markdown_rows_have_as_many_cells_as_the_head(suite, roots, tmp_path):
    table = build_table(suite, run(suite, roots, tmp_path))
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {8}
    assert r"Ours & \<co\>" in lines[2]


def test_a_report_that_finds_no_room_ends_in_one_line(tmp_path, monkeypatch, capsys):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(command, "app", full)
    with pytest.raises(SystemExit) as left:
        command.main()
    assert left.value.code == 2
    assert re.fullmatch("error: no room to write .*it continues\n", capsys.readouterr().err)


@pytest.mark.slow
def test_a_report_of_many_results_is_quick(suite, suite_path, roots, tmp_path):
    rows = tuple(
        suite.row[1].model_copy(update={"method": f"random {n}", "random": {"seed": n}})
        for n in range(50)
    )
    many = suite.model_copy(update={"row": rows})
    stages = run(many, roots, tmp_path)
    started = time.monotonic()
    write_report(many, stages, tmp_path, Console(quiet=True))
    assert time.monotonic() - started < 20
    table = build_table(many, stages)
    assert (
        sum(table.entry(r, c).value is not None for r in table.rows for c in table.columns) == 200
    )


def test_a_probes_row_does_not_break_the_curve_of_the_loss(tmp_path):
    rows = [{"step": step, "loss": 1.0} for step in range(4)]
    path = tmp_path / "metrics.jsonl"
    drawn = []
    for probe in ([], [{"step": 1, "knn_mAP": 50.0}]):
        ordered = sorted([*rows, *probe], key=lambda row: row["step"])
        path.write_text("".join(json.dumps(row) + "\n" for row in ordered))
        drawn.append(_drawings(path))
    assert drawn[1][0] == drawn[0][0]  # the loss
    assert len(drawn[1]) == len(drawn[0]) + 1
