"""The portable engine against Detectron2 on the same weights, images and random draws."""

import re
from pathlib import Path

import pytest
import torch
from detectors import build_engine, twin_task
from torch import Tensor

from sslbench.datasets import DataRoots
from sslbench.rng import seeded
from transfer.detection import read_data
from transfer.engines.base import Draw, Engine
from transfer.naming import to_detectron2

pytestmark = pytest.mark.d2

HEAD_NAMES = (
    (r"proposals\.head\.conv\.0\.0\.", "proposal_generator.rpn_head.conv."),
    (r"proposals\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"proposals\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"heads\.box_predictor\.", "roi_heads.box_predictor."),
    (r"heads\.box_head\.norm\.", "roi_heads.res5.norm."),
    (r"heads\.box_head\.1\.", "roi_heads.box_head.fc1."),
    (r"heads\.box_head\.3\.", "roi_heads.box_head.fc2."),
    (r"heads\.region_mask_head\.8\.", "roi_heads.mask_head.deconv."),
    (r"heads\.region_mask_head\.10\.", "roi_heads.mask_head.predictor."),
)


def detectron2_name(name: str, layout: str) -> str:
    """Name in Detectron2's model of a tensor of ours."""
    trunk = re.fullmatch(r"features\.trunk\.(.*)", name)
    last = re.fullmatch(r"heads\.box_head\.res5\.(.*)", name)
    if trunk or last:
        canonical = trunk[1] if trunk else f"layer4.{last[1]}"
        return next(iter(to_detectron2({canonical: None}, layout)))
    pyramid = re.fullmatch(r"features\.pyramid\.(inner|layer)_blocks\.(\d)\.([01])\.(.*)", name)
    if pyramid:
        kind = {"inner": "fpn_lateral", "layer": "fpn_output"}[pyramid[1]]
        norm = "norm." if pyramid[3] == "1" else ""
        return f"backbone.{kind}{int(pyramid[2]) + 2}.{norm}{pyramid[4]}"
    conv = re.fullmatch(r"heads\.region_mask_head\.([0246])\.(.*)", name)
    if conv:
        return f"roi_heads.mask_head.mask_fcn{int(conv[1]) // 2 + 1}.{conv[2]}"
    for pattern, target in HEAD_NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, target, name)
    raise AssertionError(f"no Detectron2 name for {name}")


@pytest.fixture(params=["c4", "fpn"])
def engines(request: pytest.FixtureRequest, scenes: DataRoots, tmp_path: Path):
    """Ours and Detectron2's with all tensors equal, heads scaled up so that they matter."""
    layout = request.param
    # one size and no flip: both engines then see the same pixels
    same = ["set.INPUT.RANDOM_FLIP=none", "set.INPUT.MIN_SIZE_TRAIN=[96]"]
    ours = build_engine(twin_task(layout, "torchvision", same), scenes, tmp_path)
    theirs = build_engine(twin_task(layout, "detectron2", same), scenes, tmp_path)
    torch.manual_seed(1)
    state = {}
    for name, value in ours.model.state_dict().items():
        is_predictor = re.search(r"cls_score|bbox_pred|cls_logits|mask_head\.10", name)
        noise = 0.05 * torch.randn_like(value) if is_predictor else 0
        state[name] = value + noise if value.is_floating_point() else value
    ours.model.load_state_dict(state)
    renamed = {
        detectron2_name(name, layout): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    missing = theirs.model.load_state_dict(renamed, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    return layout, ours, theirs


def batches(layout: str, ours: Engine, theirs: Engine, scenes: DataRoots):
    records = read_data(twin_task(layout), scenes)[0].records
    # of one orientation: the pyramid pads to 32, C4 to the largest of the batch
    chosen = [record for record in records if record.width > record.height][:2]
    return [
        [engine.mapper.train(record, Draw(0, 0, slot)) for slot, record in enumerate(chosen)]
        for engine in (ours, theirs)
    ]


def test_both_engines_see_the_same_pixels_and_boxes(engines, scenes: DataRoots):
    layout, ours, theirs = engines
    for mine, other in zip(*batches(layout, ours, theirs, scenes), strict=True):
        assert torch.equal(mine.image_3HW, other["image"])
        assert torch.allclose(mine.boxes_N4, other["instances"].gt_boxes.tensor, atol=1e-4)
        assert torch.equal(mine.classes_N, other["instances"].gt_classes)


def test_the_losses_of_the_first_step_agree(engines, scenes: DataRoots):
    layout, ours, theirs = engines
    mine, other = batches(layout, ours, theirs, scenes)
    found = {}
    for name, engine, batch in (("ours", ours, mine), ("theirs", theirs, other)):
        engine.model.train()
        with seeded(0, "sampling", 0):
            found[name] = {k: v.item() for k, v in engine.losses(batch).items()}
    assert set(found["ours"]) == set(found["theirs"])
    for term, value in found["theirs"].items():
        assert found["ours"][term] == pytest.approx(value, abs=1e-4), term


def rpn_logits(engine: Engine, batch: list) -> list[Tensor]:
    """Objectness maps of one evaluation-mode forward pass."""
    kept: list[list[Tensor]] = []
    head = next(
        m
        for n, m in engine.model.named_modules()
        if n in ("proposals.head", "proposal_generator.rpn_head")
    )
    hook = head.register_forward_hook(lambda module, inputs, output: kept.append(output[0]))
    engine.model.eval()
    engine.predict(batch)
    hook.remove()
    return kept[0]


def test_proposals_and_detections_agree_on_a_test_image(engines, scenes: DataRoots):
    layout, ours, theirs = engines
    record = read_data(twin_task(layout), scenes)[1].records[0]
    mine, other = [ours.mapper.test(record)], [theirs.mapper.test(record)]
    for a, b in zip(rpn_logits(ours, mine), rpn_logits(theirs, other), strict=True):
        assert (a - b).abs().max() < 1e-3
    (a,), (b,) = ours.predict(mine), theirs.predict(other)
    assert len(a.scores_N) == len(b.scores_N) > 0
    assert abs(a.scores_N - b.scores_N).max() < 1e-3
    assert (a.classes_N == b.classes_N).mean() > 0.9  # near ties may change places
    same = a.classes_N == b.classes_N
    assert abs(a.boxes_N4 - b.boxes_N4)[same].max() < 0.5
