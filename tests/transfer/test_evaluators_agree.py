"""The fast evaluator against pycocotools and lvis, and both against published numbers."""

import builtins
import json
from pathlib import Path

import numpy as np
import pytest
from detections import dataset_of, random_content, random_rows

from sslbench.datasets import DataError, Dataset
from transfer.evaluators import Evaluation, evaluate
from transfer.evaluators.predictions import write_predictions
from transfer.evaluators.reading import Predictions
from transfer.evaluators.scores import NAMES

KINDS = ("box", "mask")
CASES = {
    "plain": {},
    "ties in scores": {"steps": 5},
    "more than 100 detections of a class": {"most": 500, "num_categories": 2, "num_images": 3},
    "more than 300 detections of an image, with ties": {"most": 700, "steps": 20, "num_images": 3},
}


def case(family: str, seed: int, folder: Path, **options: int) -> tuple[Dataset, list[dict]]:
    """Annotations and rows; the rows of each image lie together."""
    sizes = {key: options.pop(key) for key in list(options) if key.startswith("num_")}
    content = random_content(seed, family, **sizes)
    rows = random_rows(content, seed, **options)
    return dataset_of(content, folder / "truth.json"), rows


def both(family: str, dataset: Dataset, rows: list[dict]) -> tuple[Evaluation, Evaluation]:
    reference = evaluate(family, dataset, [rows], KINDS, "reference")
    return evaluate(family, dataset, [rows], KINDS), reference


def assert_equal(ours: Evaluation, theirs: Evaluation) -> None:
    assert ours.metrics == pytest.approx(theirs.metrics, abs=1e-9)
    for own, other in zip(ours.classes, theirs.classes, strict=True):
        assert own == pytest.approx(other, abs=1e-9)


@pytest.mark.parametrize("family", ["coco", "lvis"])
@pytest.mark.parametrize("name", CASES)
def test_all_numbers_equal_the_reference(name: str, family: str, tmp_path: Path):
    ours, theirs = both(family, *case(family, 3, tmp_path, **CASES[name]))
    assert any(theirs.metrics.values())
    assert ours.evaluator.startswith("hotcoco") and not theirs.evaluator.startswith("hotcoco")
    assert_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["coco", "lvis"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(10, 16))
def test_all_numbers_equal_the_reference_on_many_cases(
    seed: int, name: str, family: str, tmp_path: Path
):
    assert_equal(*both(family, *case(family, seed, tmp_path, **CASES[name])))


@pytest.mark.parametrize("family", ["coco", "lvis"])
def test_images_in_any_order_and_batches_give_the_same_numbers(family: str, tmp_path: Path):
    dataset, rows = case(family, 5, tmp_path, steps=5)
    whole = evaluate(family, dataset, [rows], KINDS)
    of_image = {row["image_id"]: [] for row in rows}
    for row in rows:
        of_image[row["image_id"]].append(row)
    assert len(of_image) > 3
    assert evaluate(family, dataset, list(of_image.values())[::-1], KINDS) == whole


@pytest.mark.parametrize("choice", ["default", "reference"])
@pytest.mark.parametrize("family", ["coco", "lvis"])
def test_no_predictions_score_zero_not_nan(family: str, choice: str, tmp_path: Path):
    dataset, _ = case(family, 3, tmp_path)
    found = evaluate(family, dataset, [], KINDS, choice)
    values = [value for value in found.metrics.values() if value is not None]
    assert len(values) > 10 and set(values) == {0.0}


@pytest.mark.parametrize("choice", ["default", "reference"])
def test_categories_without_objects_are_not_evaluated(choice: str, tmp_path: Path):
    content = random_content(3, "lvis", num_images=2)
    used = {row["category_id"] for row in content["annotations"]}
    content["categories"] = [
        {"id": i, "name": f"class {i}", "frequency": "f" if i in used else "r"}
        for i in range(1, 1204)
    ]
    dataset = dataset_of(content, tmp_path / "truth.json")
    found = evaluate("lvis", dataset, [random_rows(content, 3)], ("box",), choice)
    assert len(found.classes) == 1203
    assert {row["category_id"] for row in found.classes if row["box_AP"] is not None} <= used
    assert found.metrics["box_APr"] is None and found.metrics["box_APc"] is None
    assert found.metrics["box_AP"] == found.metrics["box_APf"] is not None


def federated(folder: Path, **image: list[int]) -> tuple[Dataset, list[dict]]:
    """One object of category 1, found; a detection of category 2 with a better score."""
    sizes = {"id": 7, "height": 100, "width": 100, "file_name": "7.jpg"}
    marks = {"neg_category_ids": [], "not_exhaustive_category_ids": []} | image
    item = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 10, 40, 40], "area": 1600}
    categories = [{"id": i, "name": str(i), "frequency": "c"} for i in (1, 2)]
    content = {"images": [sizes | marks], "annotations": [item], "categories": categories}
    hit = {"image_id": 7, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.5}
    return dataset_of(content, folder / "truth.json"), [hit]


@pytest.mark.parametrize("choice", ["default", "reference"])
def test_lvis_does_not_punish_where_a_class_is_not_exhaustive(choice: str, tmp_path: Path):
    dataset, (hit,) = federated(tmp_path)
    wrong = hit | {"bbox": [60, 60, 30, 30], "score": 0.9}
    ap = evaluate("lvis", dataset, [[hit, wrong]], ("box",), choice).metrics["box_AP"]
    assert ap == pytest.approx(50)
    dataset, _ = federated(tmp_path, not_exhaustive_category_ids=[1])
    ap = evaluate("lvis", dataset, [[hit, wrong]], ("box",), choice).metrics["box_AP"]
    assert ap == pytest.approx(100)


@pytest.mark.parametrize("choice", ["default", "reference"])
def test_lvis_counts_the_best_300_detections_of_an_image(choice: str, tmp_path: Path):
    dataset, (hit,) = federated(tmp_path, neg_category_ids=[2])
    others = [hit | {"category_id": 2, "score": 0.9} for _ in range(300)]
    metrics = evaluate("lvis", dataset, [[hit, *others]], ("box",), choice).metrics
    assert metrics["box_AR300"] == 0
    metrics = evaluate("lvis", dataset, [[hit, *others[1:]]], ("box",), choice).metrics
    assert metrics["box_AR300"] == pytest.approx(100)


def test_the_reference_leaves_numpy_as_it_was(tmp_path: Path):
    dataset, rows = federated(tmp_path)
    evaluate("lvis", dataset, [rows], ("box",), "reference")
    assert not hasattr(np, "float")


def test_without_hotcoco_the_reference_steps_in_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = builtins.__import__

    def refuse(name: str, *rest: object):
        if name == "hotcoco":
            raise ImportError("no wheel for this platform")
        return plain(name, *rest)

    dataset, rows = federated(tmp_path)
    whole = evaluate("lvis", dataset, [rows])
    monkeypatch.setattr(builtins, "__import__", refuse)
    found = evaluate("lvis", dataset, [rows])
    assert found.metrics == whole.metrics and found.evaluator.startswith("lvis 0.5")
    (note,) = found.footnotes
    assert note.startswith("evaluated with lvis") and "no wheel for this platform" in note


def changed(folder: Path, family: str = "lvis", **changes: object) -> Dataset:
    dataset, _ = federated(folder)
    content = json.loads(dataset.annotation_path.read_text())
    for place, change in changes.items():
        row = content[place][0]
        for key, value in change.items():
            row.pop(key, None)
            if value is not None:
                row[key] = value
    return dataset_of(content, folder / "truth.json")


@pytest.mark.parametrize("choice", ["default", "reference"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": {"id": 0}}, r"annotation id 0; .* number the annotations anew"),
        ({"annotations": {"area": None}}, "annotation 1 has no area"),
        (
            {"images": {"neg_category_ids": None}},
            "0 of 1 images have neg_category_ids: not an LVIS",
        ),
        ({"categories": {"frequency": None}}, "category 1 has the frequency None; LVIS has r, c"),
    ],
)
def test_annotations_that_would_be_misread_are_refused(
    change: dict, message: str, choice: str, tmp_path: Path
):
    with pytest.raises(DataError, match=rf"truth\.json: {message}"):
        evaluate("lvis", changed(tmp_path, **change), [], ("box",), choice)


def test_an_annotation_id_that_occurs_twice_is_refused(tmp_path: Path):
    content = random_content(3, "coco")
    content["annotations"][1]["id"] = 1
    with pytest.raises(DataError, match=r"annotation id 1 occurs twice.*anew"):
        evaluate("coco", dataset_of(content, tmp_path / "truth.json"), [])


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ([[1, 2, 3, 4]], r"annotation 1 has the polygon \[1, 2, 3, 4\], which has fewer than 3"),
        (None, "annotation 1 has no segmentation, so masks cannot be evaluated"),
        ({"size": [9, 9], "counts": "0a"}, r"annotation 1 has a mask of size \[9, 9\], its image"),
    ],
)
def test_objects_without_a_fitting_mask_are_refused_for_masks(
    outline: object, message: str, tmp_path: Path
):
    dataset = changed(tmp_path, annotations={"segmentation": outline})
    with pytest.raises(DataError, match=message):
        evaluate("lvis", dataset, [], ("box", "mask"))
    assert evaluate("lvis", dataset, [], ("box",)).metrics["box_AP"] == 0


def test_voc_has_no_other_evaluator(tmp_path: Path):
    with pytest.raises(ValueError, match="metric 'voc07' has one evaluator"):
        evaluate("voc07", federated(tmp_path)[0], [], ("box",), "reference")


@pytest.mark.parametrize("choice", ["default", pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["coco", "lvis"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_published_numbers_are_reproduced(
    family: str, kind: str, choice: str, real_data: Path, tmp_path: Path
):
    folder = real_data / {"coco": "coco_eval_reference", "lvis": "lvis"}[family]
    truth, found, key = {
        "coco": ("instances_val2014_100", f"instances_val2014_fake{kind}100_results", "/all100"),
        "lvis": ("lvis_val_100", f"lvis_fake{kind}100_results", ""),
    }[family]
    expected = json.loads((folder / "expected.json").read_text())[f"{kind}{key}"]
    content = json.loads((folder / f"{truth}.json").read_text())
    dataset = dataset_of(content, tmp_path / "truth.json")
    name = {"bbox": "box", "segm": "mask"}[kind]
    predictions = Predictions(folder / f"{found}.json", dataset, (name,))
    metrics = predictions.feed(lambda b: evaluate(family, dataset, b, (name,), choice)).metrics
    values = dict(zip(NAMES[family], (100 * v for v in expected.values()), strict=True))
    assert metrics == pytest.approx({f"{name}_{k}": v for k, v in values.items()}, abs=1e-9)


def test_rows_of_an_image_that_lie_apart_count_together(tmp_path: Path):
    dataset, rows = case("coco", 5, tmp_path, steps=5)
    rows.sort(key=lambda row: row["image_id"])
    mixed = rows[::2] + rows[1::2]
    write_predictions(tmp_path / "p.json", mixed)
    found = Predictions(tmp_path / "p.json", dataset, KINDS)
    in_file = found.feed(lambda batches: evaluate("coco", dataset, batches, KINDS))
    assert in_file == evaluate("coco", dataset, [mixed], KINDS)
