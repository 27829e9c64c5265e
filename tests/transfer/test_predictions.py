"""Predictions files: read in pieces, each row checked, what does not fit named."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from detections import dataset_of, random_content, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from sslbench.datasets import Dataset
from transfer.evaluators.json_rows import pieces
from transfer.evaluators.predictions import PredictionError, write_predictions
from transfer.evaluators.reading import Kind, Predictions, Row, _Check
from transfer.evaluators.rle import mask_sizes

KINDS = ("box", "mask")


def batches(path: Path, dataset: Dataset, kinds: tuple[Kind, ...] = KINDS) -> list[list[Row]]:
    return Predictions(path, dataset, kinds).feed(list)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return dataset_of(random_content(3, "coco"), tmp_path / "truth.json")


@pytest.fixture
def rows(dataset: Dataset) -> list[dict]:
    found = random_rows(json.loads(dataset.annotation_path.read_text()), 3)
    return sorted(found, key=lambda row: row["image_id"])


@pytest.mark.parametrize(
    "written",
    [
        lambda rows: json.dumps(rows),  # one line, as Detectron2 writes it
        lambda rows: json.dumps(rows, indent=2),
        lambda rows: json.dumps(rows, separators=(",", ":")),
        lambda rows: "  \n" + json.dumps(rows) + "\n\n",
        lambda rows: json.dumps([{**row, "extra": [{"a": 1}, {"b": "}, {"}]} for row in rows]),
    ],
)
@pytest.mark.parametrize("size", [7, 1000, 1 << 22])
def test_any_layout_of_the_json_is_read_in_pieces_of_any_size(
    written: object, size: int, rows: list[dict], tmp_path: Path
):
    path = tmp_path / "p.json"
    path.write_text(written(rows[:20]))
    found = [row for piece in pieces(path, size) for row in piece]
    assert [{k: v for k, v in row.items() if k != "extra"} for row in found] == rows[:20]


def test_our_own_files_are_read_in_many_pieces(rows: list[dict], tmp_path: Path):
    write_predictions(tmp_path / "p.json", rows)
    found = [piece for piece in pieces(tmp_path / "p.json", 2000) if piece]
    assert len(found) > 10 and [row for piece in found for row in piece] == rows


def test_predictions_survive_the_file(dataset: Dataset, rows: list[dict], tmp_path: Path):
    for expected in (rows, []):
        write_predictions(tmp_path / "p.json", expected)
        found = Predictions(tmp_path / "p.json", dataset, KINDS)
        assert [row for batch in found.feed(list) for row in batch] == expected
        assert found.num_rows == len(expected) and found.kept == []


def test_only_rows_that_were_asked_for_stay_in_memory(
    dataset: Dataset, rows: list[dict], tmp_path: Path
):
    write_predictions(tmp_path / "p.json", rows)
    wanted = rows[0]["image_id"]
    found = Predictions(tmp_path / "p.json", dataset, KINDS, keep={wanted})
    found.feed(list)
    assert found.kept == [row for row in rows if row["image_id"] == wanted]


def in_pieces_of(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfer.evaluators.reading.pieces", lambda path: pieces(path, size))


@pytest.mark.parametrize("size", [300, 3000, 20_000])
def test_a_batch_never_parts_an_image(
    size: int,
    dataset: Dataset,
    rows: list[dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    write_predictions(tmp_path / "p.json", rows)
    in_pieces_of(size, monkeypatch)
    found = [batch for batch in batches(tmp_path / "p.json", dataset) if batch]
    ids = [{row["image_id"] for row in batch} for batch in found]
    assert len(found) > 1 and sum(map(len, ids)) == len(set.union(*ids))
    assert [row for batch in found for row in batch] == rows


def test_rows_that_lie_scattered_are_gathered_by_image_in_their_order(
    dataset: Dataset, rows: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mixed = rows[::2] + rows[1::2]
    write_predictions(tmp_path / "p.json", mixed)
    monkeypatch.setattr("transfer.evaluators.reading.MOST_ROWS", 40)
    in_pieces_of(3000, monkeypatch)
    keep = {rows[0]["image_id"]}
    found = Predictions(tmp_path / "p.json", dataset, KINDS, keep)
    gathered = found.feed(list)
    assert len(gathered) > 1 and sum(map(len, gathered)) == len(rows) == found.num_rows
    ids = [{row["image_id"] for row in batch} for batch in gathered]
    assert sum(map(len, ids)) == len(set.union(*ids))
    for batch, own in zip(gathered, ids, strict=True):
        assert batch == [row for row in mixed if row["image_id"] in own]
    assert found.kept == [row for row in mixed if row["image_id"] in keep]


BAD = [
    ({"image_id": 99999}, r"is for image 99999, which is not in coco2017/val.*another split\?"),
    ({"image_id": "7"}, "is for image '7', which is not in"),
    ({"image_id": 7.0}, r"is for image 7\.0, which is not in"),
    ({"image_id": [7]}, r"is for image \[7\], which is not in"),
    ({"category_id": True}, "has the unknown category_id True"),
    ({"category_id": 99}, "has the unknown category_id 99; coco2017/val has .*not from 0"),
    ({"score": math.nan}, "has the score nan, not a finite number; a training that diverged"),
    ({"score": math.inf}, "has the score inf"),
    ({"score": 10**400}, r"has the score 10+\.\.\., not a finite"),
    ({"score": "0.5"}, "has the score '0.5'"),
    ({"score": None}, "has the score None"),
    ({"bbox": [1, 2, 3]}, r"has the bbox \[1, 2, 3\]; it must be x, y, width, height"),
    ({"bbox": [1, 2, -3, 4]}, r"has the bbox \[1, 2, -3, 4\].*both sizes >= 0"),
    ({"bbox": [1, 2, math.nan, 4]}, "has the bbox"),
    ({"bbox": [1, 2, 10**400, 4]}, "has the bbox"),
    ({"bbox": None}, "has the bbox None"),
    ({"bbox": [[1, 2, 3, 4]]}, "has the bbox"),
    ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, "it must be COCO's compressed RLE"),
    ({"segmentation": {"size": [3, 4], "counts": [12]}}, "it must be COCO's compressed RLE"),
    ({"segmentation": {"size": [3, 4], "counts": "<"}}, r"mask of size \[3, 4\], its image is \["),
    ({"segmentation": {"counts": "<"}}, "has a mask of size None"),
]


def write_with(rows: list[dict], number: int, bad: object, path: Path) -> Path:
    path.write_text(json.dumps([*rows[:number], bad, *rows[number + 1 :]]))
    return path


@pytest.mark.parametrize(("change", "message"), BAD)
def test_predictions_that_do_not_fit_are_named(
    change: dict, message: str, dataset: Dataset, rows: list[dict], tmp_path: Path
):
    path = write_with(rows, 5, rows[5] | change, tmp_path / "p.json")
    with pytest.raises(PredictionError, match=rf"p\.json: detection 5 .*{message}"):
        batches(path, dataset)


@pytest.mark.parametrize("field", ["image_id", "category_id", "score", "bbox", "segmentation"])
def test_a_missing_field_is_named(field: str, dataset: Dataset, rows: list[dict], tmp_path: Path):
    lacking = {key: value for key, value in rows[4].items() if key != field}
    path = write_with(rows, 4, lacking, tmp_path / "p.json")
    with pytest.raises(PredictionError, match=rf"detection 4 has no {field}; each row needs"):
        batches(path, dataset)


@pytest.mark.parametrize("bad", [3, None, "row", [1]])
def test_a_row_that_is_no_object_is_named(
    bad: object, dataset: Dataset, rows: list[dict], tmp_path: Path
):
    path = write_with(rows, 2, bad, tmp_path / "p.json")
    with pytest.raises(PredictionError, match=r"detection 2 is .*, not an object"):
        batches(path, dataset)


def test_a_damaged_mask_is_named(dataset: Dataset, rows: list[dict], tmp_path: Path):
    mask = rows[6]["segmentation"]
    cut = rows[6] | {"segmentation": mask | {"counts": mask["counts"][:-1]}}
    path = write_with(rows, 6, cut, tmp_path / "p.json")
    with pytest.raises(PredictionError, match="detection 6 has a damaged mask: its runs do not"):
        batches(path, dataset)


def test_box_tasks_do_not_ask_for_masks_nor_mask_tasks_for_boxes(
    dataset: Dataset, rows: list[dict], tmp_path: Path
):
    for kind, other in (("box", "segmentation"), ("mask", "bbox")):
        bare = [{key: value for key, value in row.items() if key != other} for row in rows]
        write_predictions(tmp_path / "p.json", bare)
        assert sum(map(len, batches(tmp_path / "p.json", dataset, (kind,)))) == len(rows)


@pytest.mark.parametrize("end", [-1, -3, -40])
@pytest.mark.parametrize("size", [500, 1 << 22])
def test_a_file_that_was_cut_short_is_named_with_its_last_row(
    end: int, size: int, rows: list[dict], tmp_path: Path
):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(rows)[:end])
    whole = len(rows) - (1 if end < -1 else 0)
    with pytest.raises(PredictionError, match=f"not valid JSON at detection {whole} .*cut short"):
        list(pieces(path, size))


@pytest.mark.parametrize("text", ['{"annotations": []}', "", "  ", "3", "nothing"])
def test_a_file_that_is_no_list_is_named(text: str, tmp_path: Path):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(PredictionError, match=r"p\.json must hold a list of detections"):
        list(pieces(tmp_path / "p.json"))


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path):
    with pytest.raises(PredictionError, match=r"p\.json: no such file"):
        list(pieces(tmp_path / "p.json"))
    (tmp_path / "p.json").write_bytes(b"\x80\x04\x95")
    with pytest.raises(PredictionError, match="is not text in UTF-8"):
        list(pieces(tmp_path / "p.json"))
    with pytest.raises(PredictionError, match="cannot be read: Is a directory"):
        list(pieces(tmp_path))
    (tmp_path / "p.json").write_text("[" * 100_000)
    with pytest.raises(PredictionError, match=r"p\.json is nested too deeply"):
        list(pieces(tmp_path / "p.json"))
    (tmp_path / "p.json").write_text(f"[{'9' * 5000}]")  # more digits than Python converts
    with pytest.raises(PredictionError, match=r"p\.json is not valid JSON at detection 0"):
        list(pieces(tmp_path / "p.json"))


def test_a_mark_of_the_byte_order_is_no_part_of_the_list(tmp_path: Path):
    (tmp_path / "p.json").write_text("\ufeff[{}]")
    assert list(pieces(tmp_path / "p.json")) == [[], [{}]]


def test_sides_of_a_mask_are_whole_numbers(dataset: Dataset, rows: list[dict], tmp_path: Path):
    mask = rows[3]["segmentation"]
    sides = rows[3] | {"segmentation": mask | {"size": [float(side) for side in mask["size"]]}}
    with pytest.raises(PredictionError, match=r"detection 3 has a mask of size \[\d+\.0, "):
        batches(write_with(rows, 3, sides, tmp_path / "p.json"), dataset)


def test_the_quick_check_and_the_one_row_by_row_agree(dataset: Dataset, rows: list[dict]):
    check = _Check(Path("p.json"), dataset, KINDS)
    assert check._are_sound(rows) and not any(check.flaw(row) for row in rows)
    for change, _ in BAD:
        bad = rows[3] | change
        assert not check._are_sound([*rows[:3], bad]) and check.flaw(bad)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1), min_size=1))
def test_mask_sizes_are_those_of_the_drawn_masks(masks: list[list[list[bool]]]):
    drawn = [np.asfortranarray(np.array(mask, np.uint8)) for mask in masks]
    sizes = mask_sizes([coco_mask.encode(mask)["counts"].decode() for mask in drawn])
    assert sizes.pixels_N.tolist() == [mask.size for mask in drawn]
    assert sizes.areas_N.tolist() == [mask.sum() for mask in drawn]


@pytest.mark.parametrize("side", [40, 3000])
def test_mask_sizes_of_long_runs(side: int):
    mask = np.zeros((side, side), np.uint8, order="F")
    mask[side // 3 : side // 2, side // 4 :] = 1
    sizes = mask_sizes([coco_mask.encode(mask)["counts"].decode()] * 3)
    assert set(sizes.pixels_N) == {side**2} and set(sizes.areas_N) == {mask.sum()}


def test_broken_masks_do_not_spoil_their_neighbours():
    whole = coco_mask.encode(np.ones((9, 9), np.uint8, order="F"))["counts"].decode()
    sizes = mask_sizes([whole, "", "~~", "é", "oooooooooooooooo0", "X", whole])
    assert sizes.pixels_N.tolist() == [81, -1, -1, -1, -1, -1, 81]
    assert mask_sizes([]).areas_N.tolist() == []
