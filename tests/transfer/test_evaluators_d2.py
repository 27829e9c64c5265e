"""Detectron2's evaluators and ours on the file that Detectron2 writes."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from test_evaluate_command import perfect_rows

from sslbench.datasets import DataRoots, read
from transfer.engines.masks import rasterise
from transfer.evaluators import evaluate
from transfer.evaluators.reading import Predictions

pytestmark = pytest.mark.d2
NAMES = {"coco": ("AP", "AP50", "AP75", "APs", "APm", "APl")}
NAMES["lvis"] = (*NAMES["coco"], "APr", "APc", "APf")


@pytest.mark.parametrize("family", ["coco", "lvis"])
def test_numbers_from_detectron2s_own_file_equal_its_evaluators(
    family: str, scenes: DataRoots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import COCOEvaluator, LVISEvaluator
    from detectron2.structures import Boxes, Instances

    dataset = read({"coco": "coco2017/val", "lvis": "lvis_v1/val"}[family], scenes)
    name = f"{family}_{tmp_path.name}"
    MetadataCatalog.get(name).set(
        json_file=str(dataset.annotation_path),
        thing_classes=list(dataset.classes),
        thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(dataset.category_ids)},
    )
    options = {"tasks": ("bbox", "segm"), "distributed": False, "output_dir": str(tmp_path)}
    if family == "coco":
        evaluator = COCOEvaluator(name, use_fast_impl=False, **options)
    else:
        monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 asks for it
        evaluator = LVISEvaluator(name, **options)
    evaluator.reset()
    rng = np.random.default_rng(0)
    rows = perfect_rows(dataset)
    for record in dataset.records:
        own = [row for row in rows if row["image_id"] == record.image_id]
        if not own:
            continue
        corners = np.array([[x, y, x + w, y + h] for x, y, w, h in (r["bbox"] for r in own)])
        masks = [rasterise(r["segmentation"], record.height, record.width, "") for r in own]
        shift = int(rng.integers(0, 4))
        found = Instances((record.height, record.width))
        found.pred_boxes = Boxes(torch.tensor(corners + rng.normal(0, 2, corners.shape)).float())
        found.pred_masks = torch.tensor(np.roll(np.stack(masks), shift, axis=2)).bool()
        found.scores = torch.tensor(rng.random(len(own))).float()
        numbers = [dataset.category_ids.index(r["category_id"]) for r in own]
        found.pred_classes = torch.tensor(numbers)
        evaluator.process([{"image_id": record.image_id}], [{"instances": found}])
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = evaluator.evaluate()

    (file,) = tmp_path.glob("*instances_results.json")
    kinds = ("box", "mask")
    predictions = Predictions(file, dataset, kinds)
    ours = predictions.feed(lambda b: evaluate(family, dataset, b, kinds)).metrics
    for kind, other in (("box", "bbox"), ("mask", "segm")):
        assert 0 < theirs[other]["AP"] < 100
        for metric in NAMES[family]:
            value = ours[f"{kind}_{metric}"]
            if value is None:  # theirs: nan, or -100 for LVIS
                assert not theirs[other][metric] >= 0
            else:
                assert value == pytest.approx(theirs[other][metric], abs=1e-4)
