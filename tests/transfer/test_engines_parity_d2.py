"""The portable engine against Detectron2 on the same weights, images and random draws.

What is measured here stands in docs/engines.md.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import twin_task
from torch import Tensor, nn
from twin_engines import LAYOUTS, VARIANTS, build_both, detectron2_name, training_batches

from sslbench.datasets import DataRoots, Record
from sslbench.log import RunLog
from sslbench.rng import seeded
from transfer.detection import read_data, usable
from transfer.engines.base import Draw, Engine
from transfer.engines.detectron2 import dataset_dict
from transfer.loader import batch_stream, index_stream
from transfer.precise_bn import precise_bn
from transfer.task import load_task
from transfer.trainer import parameter_groups

pytestmark = pytest.mark.d2

Pair = tuple[str, Engine, Engine]


@pytest.fixture(params=VARIANTS)
def pair(request: pytest.FixtureRequest, scenes: DataRoots, tmp_path: Path) -> Pair:
    return request.param, *build_both(request.param, scenes, tmp_path)


def first_losses(engine: Engine, batch: Sequence[Any]) -> dict[str, Tensor]:
    engine.model.train()
    with seeded(0, "sampling", 0):
        return engine.losses(batch)


def test_the_losses_of_the_first_step_agree(pair: Pair, scenes: DataRoots):
    variant, *engines = pair
    batches = training_batches(variant, *engines, scenes)
    ours, theirs = (first_losses(*side) for side in zip(engines, batches, strict=True))
    assert set(ours) == set(theirs)
    for term, value in theirs.items():
        assert ours[term].item() == pytest.approx(value.item(), rel=2e-6, abs=2e-7), term


def test_the_gradient_of_every_tensor_agrees(pair: Pair, scenes: DataRoots):
    variant, ours, theirs = pair
    batches = training_batches(variant, ours, theirs, scenes)
    for engine, batch in zip((ours, theirs), batches, strict=True):
        sum(first_losses(engine, batch).values()).backward()
    other = dict(theirs.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        wanted = other.pop(detectron2_name(ours.model, name, LAYOUTS[variant])).grad
        assert (parameter.grad - wanted).norm() <= 3e-5 * wanted.norm() + 1e-9, name
    assert not other


def norm_statistics(model: nn.Module) -> dict[str, Tensor]:
    return {n: v for n, v in model.state_dict().items() if n.endswith(("_mean", "_var"))}


def test_the_statistics_of_precise_bn_agree(pair: Pair, scenes: DataRoots):
    variant, ours, theirs = pair
    draws = [training_batches(variant, ours, theirs, scenes, first) for first in range(2)]
    for side, engine in enumerate((ours, theirs)):
        engine.model.train()

        def forward(iteration: int, batch: Sequence[Any], engine: Engine = engine) -> None:
            with seeded(0, "sampling", iteration):
                engine.losses(batch)

        assert precise_bn(engine.model, forward, enumerate(d[side] for d in draws)) > 20
    other = norm_statistics(theirs.model)
    for name, value in norm_statistics(ours.model).items():
        wanted = other.pop(detectron2_name(ours.model, name, LAYOUTS[variant]))
        assert (value - wanted).abs().max() <= 2e-6 * wanted.abs().max() + 1e-9, name
    assert not other


class Seen:
    """Outputs of named modules in one prediction, of those that a detector has.

    Args:
        names: what to call an output -> the module's name.
    """

    def __init__(self, engine: Engine, batch: Sequence[Any], names: dict[str, str]) -> None:
        self.found: dict[str, tuple[Any, Any]] = {}
        modules = dict(engine.model.named_modules())
        hooks = [
            modules[name].register_forward_hook(self._keep(key))
            for key, name in names.items()
            if name in modules
        ]
        engine.model.eval()
        (self.detections,) = engine.predict(batch)
        for hook in hooks:
            hook.remove()

    def _keep(self, key: str):
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self.found.setdefault(key, (inputs, output))

        return hook


OURS = {
    "proposals": "proposals.head",
    "boxes": "heads.box_predictor",
    "masks": "heads.region_mask_head",
}
THEIRS = {
    "proposals": "proposal_generator.rpn_head",
    "boxes": "roi_heads.box_predictor",
    "masks": "roi_heads.mask_head",
    "all masks": "roi_heads.mask_head.predictor",
}


def test_logits_and_detections_of_a_test_image_agree(pair: Pair, scenes: DataRoots):
    variant, ours, theirs = pair
    record = read_data(load_task(variant.split()[0]).resolved(), scenes)[1].records[0]
    mine = Seen(ours, [ours.mapper.test(record)], OURS)
    other = Seen(theirs, [theirs.mapper.test(record)], THEIRS)
    for part in ("proposals", "boxes"):
        for a, b in zip(mine.found[part][1], other.found[part][1], strict=True):  # logits, boxes
            for level, wanted in zip(_levels(a), _levels(b), strict=True):
                assert (level - wanted).abs().max() <= 2e-6 * max(1, wanted.abs().max()), part
    if "masks" in mine.found:
        classes = torch.cat([found.pred_classes for found in other.found["masks"][0][1]])
        maps = other.found["all masks"][1]
        wanted = maps[torch.arange(len(maps)), classes]
        assert torch.equal(mine.found["masks"][0][1], classes)
        assert (mine.found["masks"][1] - wanted).abs().max() <= 2e-6 * max(1, wanted.abs().max())
    a, b = mine.detections, other.detections
    assert len(a.scores_N) == len(b.scores_N) > 0
    assert (a.classes_N == b.classes_N).all()
    assert abs(a.scores_N - b.scores_N).max() < 1e-6
    assert abs(a.boxes_N4 - b.boxes_N4).max() < 1e-3
    assert a.masks == b.masks


def _levels(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, list | tuple) else [output]


@pytest.mark.parametrize("norm", ["BN", "naiveSyncBN", "FrozenBN"])
def test_every_norm_gives_the_same_losses(norm: str, scenes: DataRoots, tmp_path: Path):
    engines = build_both("coco_c4_twin", scenes, tmp_path, f"MODEL.RESNETS.NORM={norm}")
    batches = training_batches("coco_c4_twin", *engines, scenes)
    ours, theirs = (first_losses(*side) for side in zip(engines, batches, strict=True))
    for term, value in theirs.items():
        assert ours[term].item() == pytest.approx(value.item(), rel=1e-5), term


@pytest.mark.parametrize("variant", ["voc_det_twin", "coco_fpn_twin"])
def test_both_engines_see_the_same_pixels_boxes_and_outlines(
    variant: str, scenes: DataRoots, tmp_path: Path
):
    ours, theirs = build_both(variant, scenes, tmp_path)
    records = read_data(load_task(variant).resolved(), scenes)[0].records
    crowded = [replace(o, crowd=index == 0) for index, o in enumerate(records[0].objects * 2)]
    for record in (*records, replace(records[0], objects=tuple(crowded))):
        mine = ours.mapper.train(record, Draw(0, 0, 0))
        other = theirs.mapper.train(record, Draw(0, 0, 0))
        found = other["instances"]
        assert torch.equal(mine.image_3HW, other["image"])
        assert torch.equal(mine.boxes_N4, found.gt_boxes.tensor)
        assert torch.equal(mine.classes_N, found.gt_classes)
        if variant == "coco_fpn_twin":
            for polygons, wanted in zip(mine.shapes_N, found.gt_masks.polygons, strict=True):
                pairs = zip(polygons, wanted, strict=True)
                assert all((polygon == outline).all() for polygon, outline in pairs)
        assert torch.equal(ours.mapper.test(record).image_3HW, theirs.mapper.test(record)["image"])


@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
def test_every_short_side_and_both_directions_are_drawn_alike(
    engine: str, scenes: DataRoots, tmp_path: Path
):
    keys = ("INPUT.MIN_SIZE_TRAIN=[64,80,96]", "INPUT.RANDOM_FLIP=horizontal")
    both = build_both("voc_det_twin", scenes, tmp_path, *keys)
    mapper = both[engine == "detectron2"].mapper
    record = read_data(twin_task("c4"), scenes)[0].records[0]
    drawn: dict[tuple[int, float], int] = {}
    for iteration in range(600):
        sample = mapper.train(record, Draw(0, iteration, 0))
        is_dict = isinstance(sample, dict)
        pixels = sample["image"] if is_dict else sample.image_3HW
        boxes = sample["instances"].gt_boxes.tensor if is_dict else sample.boxes_N4
        left = round(float(boxes[0, 0]) / pixels.shape[2], 3)
        key = (min(pixels.shape[1:]), left)
        drawn[key] = drawn.get(key, 0) + 1
    assert sorted({side for side, _ in drawn}) == [64, 80, 96] and len(drawn) == 6
    assert all(60 < count < 140 for count in drawn.values())  # 100 +- 4.4 deviations


def test_the_same_images_are_left_out_of_training(scenes: DataRoots, tmp_path: Path):
    from detectron2.data.build import filter_images_with_only_crowd_annotations

    first, second, *others = read_data(twin_task("fpn"), scenes)[0].records
    crowd = replace(first, objects=tuple(replace(o, crowd=True) for o in first.objects))
    records = [crowd, replace(second, objects=()), *others]
    with RunLog(tmp_path) as log:
        kept = usable(records, log, drop_empty=True)
    theirs = filter_images_with_only_crowd_annotations([dataset_dict(r) for r in records])
    assert (
        [r.image_id for r in kept]
        == [d["image_id"] for d in theirs]
        == [r.image_id for r in others]
    )


def test_images_are_grouped_into_batches_by_orientation_as_in_detectron2():
    from detectron2.data.common import AspectRatioGroupedDataset

    groups = [0, 1, 1, 0, 1, 0, 0, 1, 1]  # 1: wider than high; a square is not
    sides = [(20, 10) if group else (10, 10 + i % 2) for i, group in enumerate(groups)]
    stream = (
        {"index": i, "width": sides[i][0], "height": sides[i][1]}
        for i in index_stream(len(groups), 3)
    )
    theirs = [[d["index"] for d in b] for b in islice(AspectRatioGroupedDataset(stream, 2), 50)]
    assert list(islice(batch_stream(groups, 2, 3), 50)) == theirs


def test_every_parameter_has_detectron2s_weight_decay(pair: Pair):
    from detectron2.solver.build import get_default_optimizer_params

    variant, *engines = pair
    recipe = load_task(variant.split()[0]).resolved().values()
    for engine in engines:
        names = {id(p): n for n, p in engine.model.named_parameters()}
        theirs = get_default_optimizer_params(
            engine.model,
            base_lr=recipe["SOLVER.BASE_LR"],
            weight_decay=recipe["SOLVER.WEIGHT_DECAY"],
            weight_decay_norm=recipe["SOLVER.WEIGHT_DECAY_NORM"],
            bias_lr_factor=1.0,
            weight_decay_bias=None,
        )
        wanted = {names[id(p)]: g["weight_decay"] for g in theirs for p in g["params"]}
        groups = parameter_groups(engine.model, recipe)
        assert {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]} == wanted
        assert {g.get("lr", recipe["SOLVER.BASE_LR"]) for g in theirs} == {recipe["SOLVER.BASE_LR"]}


def images_of(categories: Sequence[Sequence[int]]) -> list[Record]:
    from sslbench.datasets import Object

    return [
        Record(
            number,
            Path("x.jpg"),
            9,
            9,
            tuple(Object(c, (0.0, 0.0, 5.0, 5.0), 25.0, False, False, None, 0) for c in image),
        )
        for number, image in enumerate(categories)
    ]


@pytest.mark.parametrize("root", [True, False])
def test_repeat_factors_are_detectron2s(root: bool):
    from detectron2.data.samplers import RepeatFactorTrainingSampler

    from transfer.repeat_factors import repeat_factors

    categories = [[0, 1], [0], [0, 0, 2], [3, 0], [], *[[0, 4]] * 30]
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        [dataset_dict(record) for record in images_of(categories)], 0.2, sqrt=root
    )
    ours = repeat_factors([set(image) for image in categories], 0.2, root=root)
    assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-6)
    assert max(ours) > 1.5


@pytest.mark.parametrize("variant", ["coco_c4_twin", "coco_fpn_twin"])
def test_an_image_without_objects_weighs_alike(variant: str, scenes: DataRoots, tmp_path: Path):
    ours, theirs = build_both(variant, scenes, tmp_path)
    first, second, *_ = read_data(load_task(variant).resolved(), scenes)[0].records
    found = []
    for engine in (ours, theirs):
        bare = [first, replace(second, objects=())]
        batch = [engine.mapper.train(r, Draw(0, 0, slot)) for slot, r in enumerate(bare)]
        found.append(first_losses(engine, batch))
    for term, value in found[1].items():
        assert found[0][term].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), term


@pytest.mark.parametrize("variant", ["coco_c4_twin", "coco_fpn_infomin_twin", "lvis_v1_twin"])
def test_losses_in_bfloat16_agree_as_far_as_its_digits_go(
    variant: str, scenes: DataRoots, tmp_path: Path
):
    engines = build_both(variant, scenes, tmp_path)
    batches = training_batches(variant, *engines, scenes)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (first_losses(*side) for side in zip(engines, batches, strict=True))
    for term, value in theirs.items():
        assert ours[term].dtype == torch.float32
        assert ours[term].item() == pytest.approx(value.item(), rel=0.02), term
