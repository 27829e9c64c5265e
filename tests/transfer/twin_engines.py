"""Both engines of a task with all tensors equal, and Detectron2's names of ours."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from detectors import build_engine
from torch import nn

from sslbench.datasets import DataRoots
from transfer.detection import read_data
from transfer.engines.base import Draw, Engine
from transfer.naming import to_detectron2
from transfer.task import load_task

# the twin of every recipe with a machinery of its own, and the other trunks
VARIANTS: dict[str, tuple[str, ...]] = {
    "voc_det_twin": (),
    "coco_fpn_twin": (),
    "coco_c4_twin": (),
    "coco_fpn_infomin_twin": (),
    "lvis_v1_twin": (),
    "voc_det_twin R18": ("MODEL.RESNETS.DEPTH=18",),
    "coco_fpn_twin R18": ("MODEL.RESNETS.DEPTH=18",),
    "coco_c4_twin R101": ("MODEL.RESNETS.DEPTH=101",),
    "coco_fpn_twin R101": ("MODEL.RESNETS.DEPTH=101",),
}
FULL_WIDTH = tuple(
    f"MODEL.RESNETS.{key}=64"
    for key in ("STEM_OUT_CHANNELS", "WIDTH_PER_GROUP", "RES2_OUT_CHANNELS")
)  # of a ResNet-18, the only one that Detectron2 builds
LAYOUTS = {
    variant: "fpn" if "fpn" in variant or "lvis" in variant else "c4" for variant in VARIANTS
}
LVIS = tuple(f"class {number}" for number in range(1203))
SAME_PIXELS = ("INPUT.RANDOM_FLIP=none", "INPUT.MIN_SIZE_TRAIN=[97]")


def build_both(variant: str, data: DataRoots, folder: Path, *changes: str) -> tuple[Engine, Engine]:
    """Ours and Detectron2's, predictors scaled up so that they matter; no augmentation."""
    name, *trunk = variant.split()
    keys = [*SAME_PIXELS, *VARIANTS[variant], *(FULL_WIDTH if trunk == ["R18"] else ()), *changes]
    built = []
    for engine in ("torchvision", "detectron2"):
        overrides = [f"engine={engine}", *(f"set.{key}" for key in keys)]
        task = load_task(name, overrides).resolved()
        built.append(
            build_engine(task, data, folder, classes=LVIS if task.metric == "lvis" else ())
        )
    ours, theirs = built
    make_equal(ours, theirs, LAYOUTS[variant])
    return ours, theirs


def make_equal(ours: Engine, theirs: Engine, layout: str) -> None:
    """Shake the predictors of ours, then copy every tensor to Detectron2's."""
    torch.manual_seed(1)
    state = {}
    for name, value in ours.model.state_dict().items():
        is_predictor = re.search(r"cls_score|bbox_pred|cls_logits", name)
        if name.startswith("heads.region_mask_head.") and value.shape[-2:] == (1, 1):
            is_predictor = True
        noise = 0.05 * torch.randn_like(value) if is_predictor else 0
        state[name] = value + noise if value.is_floating_point() else value
    ours.model.load_state_dict(state)
    renamed = {
        detectron2_name(ours.model, name, layout): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    missing = theirs.model.load_state_dict(renamed, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)


HEAD_NAMES = (
    (r"proposals\.head\.conv\.0\.0\.", "proposal_generator.rpn_head.conv."),
    (r"proposals\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"proposals\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"heads\.box_predictor\.", "roi_heads.box_predictor."),
    (r"heads\.box_head\.norm\.", "roi_heads.res5.norm."),
)


def detectron2_name(model: nn.Module, name: str, layout: str) -> str:
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
    head = re.fullmatch(r"heads\.(box_head|region_mask_head)\.(\d+)\.(.*)", name)
    if head:
        layers = list(model.get_submodule(f"heads.{head[1]}").children())
        return f"roi_heads.{_layer(head[1], layers, int(head[2]))}.{head[3]}"
    for pattern, target in HEAD_NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, target, name)
    raise AssertionError(f"no Detectron2 name for {name}")


def _layer(head: str, layers: Sequence[nn.Module], index: int) -> str:
    """``mask_head.mask_fcn2.norm`` for the norm after the second convolution of a mask head."""
    layer, before = layers[index], layers[: index + 1]
    owner, conv = {"box_head": ("box_head", "conv"), "region_mask_head": ("mask_head", "mask_fcn")}[
        head
    ]
    number = sum(isinstance(m, nn.Conv2d) for m in before)
    if isinstance(layer, nn.Linear):
        return f"{owner}.fc{sum(isinstance(m, nn.Linear) for m in before)}"
    if isinstance(layer, nn.ConvTranspose2d):
        return f"{owner}.deconv"
    if isinstance(layer, nn.Conv2d):
        return f"{owner}.{conv}{number}" if layer.kernel_size == (3, 3) else f"{owner}.predictor"
    return f"{owner}.{conv}{number}.norm"


def training_batches(variant: str, ours: Engine, theirs: Engine, data: DataRoots, first: int = 0):
    """The same two images for both engines: of one orientation, for C4 does not pad."""
    records = read_data(load_task(variant.split()[0], ["engine=torchvision"]).resolved(), data)[0]
    chosen = [record for record in records.records if record.width > record.height]
    return [
        [
            engine.mapper.train(record, Draw(0, first, slot))
            for slot, record in enumerate(chosen[:2])
        ]
        for engine in (ours, theirs)
    ]
