"""VOC and COCO average precision against hand-computed cases and Detectron2's evaluator."""

import json
from pathlib import Path

import numpy as np
import pytest

from sslbench.datasets import Dataset, Object, Record
from transfer.evaluators import evaluate
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
    names = ("AP", "AP50", "AP75")
    both = [*names, *(f"{name}_area" for name in names)]
    assert found.metrics == pytest.approx(dict.fromkeys(both, 100))
    assert found.missing == ("dog",) and found.per_class["dog"] == dict.fromkeys(both)


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


def test_three_objects_and_four_detections_give_the_ap_found_by_hand():
    others = [(0, 100.0, y, 150.0, y + 50, 0) for y in (10.0, 100.0)]
    right = [row(0, 1, o[1:5], s) for o, s in zip([CAT, *others], (0.9, 0.7, 0.6), strict=True)]
    wrong = row(0, 1, (10, 120, 60, 170), 0.8)
    found = evaluate_voc(voc_dataset([CAT, *others]), [*right, wrong], "voc12")
    # recall    1/3  1/3  2/3  1      best precision from there on: 1, 3/4, 3/4
    # precision  1   1/2  2/3  3/4    so the area is (1 + 3/4 + 3/4) / 3
    assert found.metrics["AP50"] == pytest.approx(100 * 2.5 / 3)
    # recalls 0.0 ... 0.3 see precision 1, 0.4 ... 1.0 see 3/4
    assert found.metrics["AP50_11point"] == pytest.approx(100 * (4 + 7 * 0.75) / 11)
    assert found.per_class["cat"]["AP50"] == found.metrics["AP50"]


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
    metrics = evaluate("coco", coco_dataset(tmp_path), [], ("box", "mask")).metrics
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
    item = Object(0, (50.0, 50.0, 150.0, 150.0), 10000, False, False, [square], 1)
    record = Record(3, Path("x.jpg"), 200, 200, (item,))
    return Dataset("coco2017", "val", ("square",), (7,), (record,), path)


def test_a_perfect_mask_scores_100_and_a_box_filling_one_less(tmp_path: Path):
    from transfer.engines.masks import encode

    dataset = coco_dataset(tmp_path)
    mask = np.zeros((200, 200), np.uint8)
    mask[50:150, 50:150] = 1
    perfect = {"image_id": 3, "category_id": 7, "bbox": [50.0, 50.0, 100.0, 100.0], "score": 0.9}
    rows = [perfect | {"segmentation": encode(mask)}]
    found = evaluate("coco", dataset, [rows], ("box", "mask")).metrics
    assert found["box_AP"] == pytest.approx(100) and found["mask_AP"] == pytest.approx(100)
    mask[50:88, 50:150] = 0  # 62 of 100 rows left
    rows = [perfect | {"segmentation": encode(mask)}]
    found = evaluate("coco", dataset, [rows], ("box", "mask")).metrics
    assert found["mask_AP"] == pytest.approx(30) and found["box_AP"] == pytest.approx(100)


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
@pytest.mark.parametrize("has_ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_voc_agrees_with_detectron2s_evaluator(
    metric: str, has_ties: bool, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import PascalVOCDetectionEvaluator, pascal_voc_evaluation
    from detectron2.structures import Boxes, Instances

    dataset, rows = random_case(seed=seed)
    if has_ties:
        rows = [r | {"score": round(r["score"], 1)} for r in rows]
        monkeypatch.setattr(pascal_voc_evaluation, "np", StableNumpy())
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
    ours = evaluate_voc(dataset, rows, metric).metrics
    assert {name: ours[name] for name in theirs} == pytest.approx(dict(theirs), abs=1e-4)
    other = evaluate_voc(dataset, rows, {"voc07": "voc12", "voc12": "voc07"}[metric]).metrics
    end = {"voc07": "_area", "voc12": "_11point"}[metric]
    assert {f"{name}{end}": other[name] for name in theirs}.items() <= ours.items()


class StableNumpy:
    """numpy, but equal scores keep their order: Detectron2 leaves them to the processor's sort."""

    def __getattr__(self, name: str):
        return getattr(np, name)

    def argsort(self, values: np.ndarray) -> np.ndarray:
        return np.argsort(values, kind="stable")


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
