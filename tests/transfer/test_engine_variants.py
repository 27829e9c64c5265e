"""Masks on C4, heads with norms, LVIS and other depths, in both engines."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import build_engine, run_detection, write_random_weights
from torch import Tensor, nn

from sslbench.config import ConfigError
from sslbench.datasets import DataError, DataRoots, Record
from sslbench.results import read_results
from sslbench.rng import seeded
from transfer.detection import read_data
from transfer.engines.base import Draw, Engine
from transfer.engines.heads import MaskHead
from transfer.engines.loading import Weights
from transfer.engines.masks import encode
from transfer.engines.proposals import Corrections, build_proposals
from transfer.task import TaskConfig, load_task
from transfer.weights import WeightsError, load_weights, write_weights

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.d2)]
LAST_STAGE = {"torchvision": "heads.box_head.res5.", "detectron2": "roi_heads.res5."}
EXTRA_NORM = {"torchvision": "heads.box_head.norm.", "detectron2": "roi_heads.res5.norm."}
TRUNK = {"torchvision": "features.trunk.", "detectron2": "backbone."}
PYRAMID = {"torchvision": "features.pyramid.", "detectron2": "backbone.fpn_"}
VARIANTS = [
    ("coco_c4_twin", 50),
    ("coco_fpn_infomin_twin", 50),
    ("lvis_v1_twin", 50),
    ("voc_det_twin", 18),
    ("coco_c4_twin", 18),
    ("coco_fpn_twin", 18),
    pytest.param("coco_c4_twin", 101, marks=pytest.mark.slow),
    pytest.param("coco_fpn_twin", 101, marks=pytest.mark.slow),
]


def variant(name: str, depth: int, engine: str) -> TaskConfig:
    """A twin on a thin trunk of any depth; Detectron2 has no thin ResNet-18."""
    width = 1.0 if depth == 18 and engine == "detectron2" else 0.125
    return load_task(name, [f"engine={engine}"]).resolved().on_trunk(depth, width)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "depth"), VARIANTS)
def test_the_trunk_comes_from_the_weights_and_only_heads_are_fresh(
    name: str, depth: int, engine: str, scenes: DataRoots, tmp_path: Path
):
    task = variant(name, depth, engine)
    built = build_engine(task, scenes, tmp_path)
    arrays, _ = load_weights(tmp_path / f"{task.layout}.pkl")
    state = built.model.state_dict()
    fresh = set(built.fresh)
    in_trunk = [n for n in state if n.startswith((TRUNK[engine], LAST_STAGE[engine]))]
    in_trunk = [n for n in in_trunk if not n.startswith((PYRAMID[engine], EXTRA_NORM[engine]))]
    loaded = [name for name in in_trunk if not name.endswith("num_batches_tracked")]
    assert len(loaded) == len(arrays) and not fresh & set(loaded)
    assert {state[n].numpy().tobytes() for n in loaded} == {a.tobytes() for a in arrays.values()}
    if task.layout == "c4":
        assert sum(name.startswith(EXTRA_NORM[engine]) for name in fresh) == 4
        assert any(name.startswith(LAST_STAGE[engine]) for name in loaded)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "depth", "lost"),
    [
        ("coco_c4_twin", 50, "roi_heads.res5.0.conv1.weight"),
        ("coco_fpn_infomin_twin", 18, "backbone.bottom_up.stem.conv1.norm.bias"),
    ],
)
def test_weights_that_lack_one_tensor_are_refused_with_its_name(
    name: str, depth: int, lost: str, engine: str, scenes: DataRoots, tmp_path: Path
):
    task = variant(name, depth, engine)
    path = write_random_weights(tmp_path / "w.pkl", task.layout, task.values().width, depth)
    arrays, said = load_weights(path)
    del arrays[lost]
    write_weights(path, arrays, said)
    place = {
        "roi_heads.res5.0.conv1.weight": "heads.box_head.res5.0.conv1.weight",
        "backbone.bottom_up.stem.conv1.norm.bias": "features.trunk.bn1.bias",
    }[lost]
    expected = lost if engine == "detectron2" else place
    build = type(build_engine(task, scenes, tmp_path))
    with pytest.raises(WeightsError, match=rf"w\.pkl.*\n  {expected}: no weights for it$"):
        build(task, ["a"], Weights.read(path))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["coco_c4_twin", "coco_fpn_infomin_twin", "lvis_v1_twin"])
def test_a_variant_learns_and_predicts_masks(
    name: str, engine: str, scenes: DataRoots, tmp_path: Path
):
    task = variant(name, 50, engine)
    built = build_engine(task, scenes, tmp_path)
    train, test = read_data(task, scenes)
    batch = [built.mapper.train(r, Draw(0, 0, i)) for i, r in enumerate(train.records[:2])]
    built.model.train()
    with seeded(0, "sampling", 0):
        terms = built.losses(batch)
    assert "loss_mask" in terms and all(torch.isfinite(term) for term in terms.values())
    built.model.eval()
    (found,) = built.predict([built.mapper.test(test.records[0])])
    assert found.masks is not None and len(found.masks) == len(found.scores_N) > 0
    assert found.classes_N.max() < len(train.classes)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["coco_c4_twin", "coco_fpn_infomin_twin"])
def test_the_stage_of_a_variant_ends_in_numbers(
    name: str, engine: str, scenes: DataRoots, tmp_path: Path
):
    task = load_task(name, [f"engine={engine}", "set.SOLVER.MAX_ITER=3"]).resolved()
    weights = write_random_weights(tmp_path / "w.pkl", task.layout)
    out = run_detection(task, scenes, weights, tmp_path / "out")
    assert {"box_AP", "mask_AP"} <= {result.metric for result in read_results(out / "results.json")}


@pytest.mark.slow
def test_the_notes_of_a_task_stand_beside_its_numbers(scenes: DataRoots, tmp_path: Path):
    keys = ["engine=torchvision", "set.SOLVER.MAX_ITER=1", 'footnotes=["said of every number"]']
    weights = write_random_weights(tmp_path / "w.pkl", "c4")
    out = run_detection(load_task("voc_det_twin", keys), scenes, weights, tmp_path / "out")
    assert all("said of every number" in r.footnotes for r in read_results(out / "results.json"))


def gradients(engine: Engine, data: DataRoots, task: TaskConfig, term: str) -> dict[str, Tensor]:
    batch = [
        engine.mapper.train(record, Draw(0, 0, slot))
        for slot, record in enumerate(read_data(task, data)[0].records[:2])
    ]
    engine.model.train()
    with seeded(0, "sampling", 0):
        engine.losses(batch)[term].backward()
    return {n: p.grad for n, p in engine.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_mask_loss_of_c4_teaches_the_shared_stage_and_its_norm_but_no_box(
    engine: str, scenes: DataRoots, tmp_path: Path
):
    task = variant("coco_c4_twin", 50, engine)
    built = build_engine(task, scenes, tmp_path)
    found = gradients(built, scenes, task, "loss_mask")
    taught = {name for name, gradient in found.items() if gradient.abs().max() > 0}
    assert LAST_STAGE[engine] + "0.conv1.weight" in taught
    assert EXTRA_NORM[engine] + "weight" in taught
    assert not [name for name in taught if "box_predictor" in name]


def test_a_mask_head_computes_the_map_of_each_regions_own_class():
    torch.manual_seed(0)
    predictor = nn.Conv2d(4, 5, 1)
    head = MaskHead(nn.ConvTranspose2d(3, 4, 2, 2), nn.ReLU(), predictor)
    maps, classes = torch.randn(6, 3, 7, 7), torch.tensor([0, 4, 2, 2, 1, 0])
    every = predictor(head[1](head[0](maps)))
    own = head(maps, classes)
    assert torch.allclose(own, every[torch.arange(6), classes], atol=1e-6)
    (own * torch.arange(14)).sum().backward()
    gradient = predictor.weight.grad.clone(), predictor.bias.grad.clone()
    predictor.zero_grad()
    (every[torch.arange(6), classes] * torch.arange(14)).sum().backward()
    assert torch.allclose(gradient[0], predictor.weight.grad, rtol=1e-4)
    assert torch.allclose(gradient[1], predictor.bias.grad, rtol=1e-4)
    assert not gradient[0][3].any()  # nobody's class


def test_an_image_without_detections_has_no_masks(scenes: DataRoots, tmp_path: Path):
    keys = ["engine=torchvision", "set.MODEL.ROI_HEADS.SCORE_THRESH_TEST=0.999"]
    for name in ("coco_c4_twin", "coco_fpn_twin"):
        task = load_task(name, keys).resolved()
        engine = build_engine(task, scenes, tmp_path)
        engine.model.eval()
        (found,) = engine.predict([engine.mapper.test(read_data(task, scenes)[1].records[0])])
        assert len(found.scores_N) == 0 and found.masks == ()


def test_a_batch_without_objects_teaches_no_masks(scenes: DataRoots, tmp_path: Path):
    task = variant("coco_c4_twin", 50, "torchvision")
    engine = build_engine(task, scenes, tmp_path)
    record = read_data(task, scenes)[0].records[0]
    empty = type(record)("x", record.path, record.height, record.width, ())
    engine.model.train()
    terms = engine.losses([engine.mapper.train(empty, Draw(0, 0, 0))])
    assert terms["loss_mask"] == 0 and terms["loss_box_reg"] == 0


def test_a_thin_resnet_18_is_refused_where_detectron2_could_not_build_it():
    from transfer.engines.detectron2 import build_config

    task = variant("voc_det_twin", 18, "torchvision")
    with pytest.raises(ConfigError, match=r"ResNet-18 of full width only, not of width 0\.125"):
        build_config(task, 3, "cpu")


def test_sure_proposals_keep_the_order_of_their_logits():
    network = build_proposals(load_task("voc_det_twin").values(), 8, (16,)).eval()
    boxes = torch.tensor([[0.0, 0, 30, 30], [0.0, 0, 31, 30]])  # one suppresses the other
    logits = torch.tensor([18.0, 30.0])  # of which the sigmoid is 1 in float32, both times
    (kept,), (scores,) = network.filter_proposals(boxes[None], logits, [(64, 64)], [2])
    assert kept.tolist() == [[0, 0, 31, 30]] and scores.tolist() == [30]


def test_a_proposal_of_a_thousandth_of_a_pixel_counts_and_an_empty_one_does_not():
    network = build_proposals(load_task("voc_det_twin").values(), 8, (16,)).eval()
    boxes = torch.tensor([[1.0, 1, 1.0005, 9], [5.0, 5, 5, 9], [70.0, 1, 80, 9]])
    (kept,), _ = network.filter_proposals(boxes[None], torch.zeros(3), [(64, 64)], [3])
    assert len(kept) == 1 and kept[0, 2] == boxes[0, 2]


def test_corrections_in_half_precision_leave_large_boxes_where_they_are():
    boxes = [torch.tensor([[801.0, 603.0, 1003.0, 701.0]])]
    found = Corrections((1.0, 1.0, 1.0, 1.0)).decode(torch.zeros(1, 4).bfloat16(), boxes)
    assert np.array_equal(found.flatten().numpy(), boxes[0].flatten().numpy())


def with_outline(record: Record, outline: object) -> Record:
    """The record with its first object outlined otherwise."""
    first, *others = record.objects
    return replace(record, objects=(replace(first, segmentation=outline), *others))


@pytest.mark.parametrize("engine", ENGINES)
def test_polygons_of_less_than_three_points_are_left_out_as_in_detectron2s_reader(
    engine: str, scenes: DataRoots, tmp_path: Path
):
    task = load_task("coco_fpn_twin", [f"engine={engine}"]).resolved()
    mapper = build_engine(task, scenes, tmp_path).mapper
    record = next(
        record
        for record in read_data(task, scenes)[0].records
        if len(record.objects) > 1 and not any(item.crowd for item in record.objects)
    )
    whole = record.objects[0].segmentation
    assert isinstance(whole, list)

    def num_objects(outline: object) -> int:
        sample = mapper.train(with_outline(record, outline), Draw(0, 0, 0))
        return len(sample["instances"] if isinstance(sample, dict) else sample.classes_N)

    assert num_objects([[1.0, 2.0, 3.0, 4.0], *whole]) == len(record.objects)
    assert num_objects([[1.0, 2.0, 3.0, 4.0], [1.0] * 7]) == len(record.objects) - 1
    with pytest.raises(DataError, match=rf"{record.path.name} has an object without segmentation"):
        num_objects(None)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_rle_teaches_the_portable_engine_and_is_refused_by_name_for_detectron2(
    engine: str, scenes: DataRoots, tmp_path: Path
):
    task = load_task("coco_fpn_twin", [f"engine={engine}"]).resolved()
    mapper = build_engine(task, scenes, tmp_path).mapper
    record = read_data(task, scenes)[0].records[0]
    record = with_outline(record, encode(np.ones((record.height, record.width))))
    record = replace(record, objects=(replace(record.objects[0], crowd=False),))
    if engine == "torchvision":
        assert mapper.train(record, Draw(0, 0, 0)).shapes_N[0].all()
    else:
        with pytest.raises(DataError, match=rf"{record.path.name}.*RLE.*engine=torchvision"):
            mapper.train(record, Draw(0, 0, 0))
