"""VOC and COCO average precision against hand-computed cases and published reference numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from sslbench.datasets import Dataset, Object, Record
from transfer.evaluators import evaluate
from transfer.evaluators.coco import evaluate_coco
from transfer.evaluators.predictions import PredictionError, read_predictions, write_predictions
from transfer.evaluators.voc import evaluate_voc


def voc_dataset(*images: list[tuple]) -> Dataset:
    """One record per image; objects are (class, x0, y0, x1, y1, difficult)."""
    records = []
    for number, objects in enumerate(images):
        found = tuple(
            Object(c, (x0, y0, x1, y1), 0.0, False, bool(difficult), None, k)
            for k, (c, x0, y0, x1, y1, difficult) in enumerate(objects)
        )
        records.append(Record(f"{number:06d}", Path("x.jpg"), 200, 200, found))
    return Dataset("voc2007", "test", ("cat", "dog"), (1, 2), tuple(records), None)


def row(image: int, category: int, box: tuple[float, ...], score: float) -> dict:
    x0, y0, x1, y1 = box
    bbox = [x0, y0, x1 - x0, y1 - y0]
    return {"image_id": f"{image:06d}", "category_id": category, "bbox": bbox, "score": score}


CAT = (0, 10.0, 10.0, 60.0, 60.0, 0)


def test_a_perfect_detection_scores_100():
    found = evaluate_voc(voc_dataset([CAT]), [row(0, 1, CAT[1:5], 0.9)], "voc07")
    assert found.metrics == pytest.approx({"AP": 100, "AP50": 100, "AP75": 100})
    assert found.missing == ("dog",)


def test_one_of_two_objects_found_scores_six_of_eleven_recall_points():
    other = (0, 100.0, 100.0, 150.0, 150.0, 0)
    found = evaluate_voc(voc_dataset([CAT, other]), [row(0, 1, CAT[1:5], 0.9)], "voc07")
    assert found.metrics["AP50"] == pytest.approx(100 * 6 / 11)  # recall 0.5: points 0.0 ... 0.5
    area = evaluate_voc(voc_dataset([CAT, other]), [row(0, 1, CAT[1:5], 0.9)], "voc12")
    assert area.metrics["AP50"] == pytest.approx(50)


def test_a_duplicate_is_wrong_and_a_better_scored_error_costs_precision():
    rows = [
        row(0, 1, (100, 100, 150, 150), 0.95),
        row(0, 1, CAT[1:5], 0.9),
        row(0, 1, CAT[1:5], 0.8),
    ]
    found = evaluate_voc(voc_dataset([CAT]), rows, "voc07")
    assert found.metrics["AP50"] == pytest.approx(50)  # precision 1/2 where recall reaches 1


def test_iou_counts_inclusive_pixels():
    # 50 x 50 object, detection 40 columns wide: 2000 / 2500 = 0.8 with x1 exclusive
    rows = [row(0, 1, (10, 10, 50, 60), 0.9)]
    found = evaluate_voc(voc_dataset([CAT]), rows, "voc07")
    # above 0.50, 0.55, ..., 0.75 but not above 0.80 itself
    assert found.metrics["AP"] == pytest.approx(100 * 6 / 10)


def test_difficult_objects_neither_count_nor_punish():
    hard = (0, 100.0, 100.0, 150.0, 150.0, 1)
    dataset = voc_dataset([CAT, hard])
    rows = [row(0, 1, hard[1:5], 0.95), row(0, 1, hard[1:5], 0.94), row(0, 1, CAT[1:5], 0.9)]
    assert evaluate_voc(dataset, rows, "voc07").metrics["AP50"] == pytest.approx(100)


def test_a_class_with_difficult_objects_only_is_not_evaluated():
    hard_dog = (1, 100.0, 100.0, 150.0, 150.0, 1)
    found = evaluate_voc(voc_dataset([CAT, hard_dog]), [], "voc07")
    assert found.missing == ("dog",) and found.metrics["AP"] == 0.0


def test_each_detection_may_match_only_its_best_object():
    # both objects overlap the second detection by more than half; its best one is taken already
    left, right = (0, 0.0, 0.0, 100.0, 100.0, 0), (0, 30.0, 0.0, 130.0, 100.0, 0)
    rows = [row(0, 1, (0, 0, 100, 100), 0.9), row(0, 1, (5, 0, 105, 100), 0.8)]
    found = evaluate_voc(voc_dataset([left, right]), rows, "voc12")
    assert found.metrics["AP50"] == pytest.approx(50)


def test_no_predictions_score_zero(tmp_path: Path):
    assert evaluate_voc(voc_dataset([CAT]), [], "voc07").metrics["AP"] == 0.0
    metrics, _ = evaluate("coco", coco_dataset(tmp_path), [], with_masks=True)
    assert metrics["box_AP"] == metrics["mask_AP50"] == 0.0
    assert metrics["box_APs"] is None  # no small object exists: not evaluated, which is not zero


def coco_dataset(folder: Path) -> Dataset:
    """One 200 x 200 image with one 100 x 100 square of category 7."""
    square = [50.0, 50.0, 150.0, 50.0, 150.0, 150.0, 50.0, 150.0]
    annotation = {"id": 1, "image_id": 3, "category_id": 7, "bbox": [50, 50, 100, 100]}
    annotation |= {"area": 10000, "iscrowd": 0, "segmentation": [square]}
    path = folder / "instances.json"
    image = {"id": 3, "height": 200, "width": 200, "file_name": "x.jpg"}
    categories = [{"id": 7, "name": "square"}]
    path.write_text(
        json.dumps({"images": [image], "annotations": [annotation], "categories": categories})
    )
    record = Record(3, Path("x.jpg"), 200, 200, ())
    return Dataset("coco2017", "val", ("square",), (7,), (record,), path)


def test_a_perfect_mask_scores_100_and_a_box_filling_one_less(tmp_path: Path):
    from transfer.engines.masks import encode

    dataset = coco_dataset(tmp_path)
    mask = np.zeros((200, 200), np.uint8)
    mask[50:150, 50:150] = 1
    perfect = {"image_id": 3, "category_id": 7, "bbox": [50.0, 50.0, 100.0, 100.0], "score": 0.9}
    rows = [perfect | {"segmentation": encode(mask)}]
    found = evaluate_coco(dataset, rows, ("box", "mask"))
    assert found["box_AP"] == pytest.approx(100) and found["mask_AP"] == pytest.approx(100)
    mask[50:88, 50:150] = 0  # 62 of 100 rows left
    found = evaluate_coco(dataset, [perfect | {"segmentation": encode(mask)}], ("box", "mask"))
    assert found["mask_AP"] == pytest.approx(30) and found["box_AP"] == pytest.approx(100)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_published_coco_reference_numbers_are_reproduced(kind: str, real_data: Path):
    folder = real_data / "coco_eval_reference"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    rows = json.loads((folder / f"instances_val2014_fake{kind}100_results.json").read_text())
    expected = json.loads((folder / "expected.json").read_text())[f"{kind}/all100"]
    categories = sorted(category["id"] for category in truth["categories"])
    records = tuple(
        Record(image["id"], Path(image["file_name"]), image["height"], image["width"], ())
        for image in truth["images"]
    )
    dataset = Dataset(
        "coco2017",
        "val",
        tuple(map(str, categories)),
        tuple(categories),
        records,
        folder / "instances_val2014_100.json",
    )
    name = {"bbox": "box", "segm": "mask"}[kind]
    found = evaluate_coco(dataset, rows, (name,))
    assert found == pytest.approx({f"{name}_{k}": 100 * v for k, v in expected.items()}, abs=1e-9)


def random_case(num_images: int = 12, seed: int = 0) -> tuple[Dataset, list[dict]]:
    """Objects of two classes, and detections near them with distinct rounded scores."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(num_images):
        corner = generator.integers(0, 100, (4, 2))
        size = generator.integers(20, 80, (4, 2))
        images.append(
            [
                (int(generator.integers(2)), *map(float, (*c, *(c + s))), generator.random() < 0.2)
                for c, s in zip(corner, size, strict=True)
            ]
        )
    rows = []
    scores = generator.permutation(np.arange(1, 1000)) / 1000
    for image, objects in enumerate(images):
        for category, *box, _ in objects * 2:
            noisy = np.float32(box) + generator.normal(0, 6, 4).astype(np.float32)
            noisy = [*np.minimum(noisy[:2], noisy[2:] - 1), *noisy[2:]]
            rows.append(
                row(image, category + 1, tuple(map(float, noisy)), float(scores[len(rows)]))
            )
    return voc_dataset(*images), rows


def test_the_order_of_the_rows_does_not_matter_when_scores_differ():
    dataset, rows = random_case()
    forward = evaluate_voc(dataset, rows, "voc07").metrics
    assert evaluate_voc(dataset, rows[::-1], "voc07").metrics == pytest.approx(forward)


@pytest.mark.d2
@pytest.mark.parametrize("metric", ["voc07", "voc12"])
@pytest.mark.parametrize("seed", range(3))
def test_voc_agrees_with_detectron2s_evaluator(metric: str, seed: int, tmp_path: Path):
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, Instances

    dataset, rows = random_case(seed=seed)
    write_devkit(tmp_path, dataset)
    name = f"voc_test_{tmp_path.name}"
    year = {"voc07": 2007, "voc12": 2012}[metric]
    MetadataCatalog.get(name).set(
        dirname=str(tmp_path), split="test", year=year, thing_classes=list(dataset.classes)
    )
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for record in dataset.records:
        own = [r for r in rows if r["image_id"] == record.image_id]
        instances = Instances((200, 200))
        corners = [[x, y, x + w, y + h] for x, y, w, h in (r["bbox"] for r in own)]
        instances.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.tensor([r["score"] for r in own])
        instances.pred_classes = torch.tensor([r["category_id"] - 1 for r in own])
        evaluator.process([{"image_id": record.image_id}], [{"instances": instances}])
    theirs = evaluator.evaluate()["bbox"]

    assert 0 < theirs["AP"] < 100
    assert evaluate_voc(dataset, rows, metric).metrics == pytest.approx(dict(theirs), abs=1e-4)


def write_devkit(folder: Path, dataset: Dataset) -> None:
    """The files that Detectron2's evaluator reads."""
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    ids = [str(record.image_id) for record in dataset.records]
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(ids) + "\n")
    for record in dataset.records:
        objects = ""
        for item in record.objects:
            x0, y0, x1, y1 = (int(edge) for edge in item.box)
            objects += (
                f"<object><name>{dataset.classes[item.category]}</name><pose>Unspecified</pose>"
                f"<truncated>0</truncated><difficult>{int(item.difficult)}</difficult><bndbox>"
                f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
                "</bndbox></object>"
            )
        path = folder / "Annotations" / f"{record.image_id}.xml"
        path.write_text(f"<annotation>{objects}</annotation>")


def test_predictions_survive_the_file(tmp_path: Path):
    dataset, rows = random_case(2)
    write_predictions(tmp_path / "p.json", rows)
    assert read_predictions(tmp_path / "p.json", dataset) == rows
    write_predictions(tmp_path / "p.json", [])
    assert read_predictions(tmp_path / "p.json", dataset) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "999999"}, "image '999999', which is not in voc2007/test"),
        ({"category_id": 9}, "unknown category_id 9"),
        ({"score": float("nan")}, "score that is not a number"),
    ],
)
def test_predictions_that_do_not_fit_are_named(change: dict, message: str, tmp_path: Path):
    dataset, rows = random_case(2)
    write_predictions(tmp_path / "p.json", [rows[0], rows[1] | change])
    with pytest.raises(PredictionError, match=f"detection 1 .*{message}"):
        read_predictions(tmp_path / "p.json", dataset)
