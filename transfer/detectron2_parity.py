"""The detector's side of the parity check, computed by Detectron2 itself.

The written file goes through Detectron2's own checkpointer into a whole detector; that every trunk
tensor arrived is checked one by one, because Detectron2 only logs what it could not match.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslbench.checkpoint import Backbone
from sslbench.resnet import stem_channels
from transfer.engines.loading import tensors
from transfer.naming import LAST_STAGE, TRUNK, Layout
from transfer.weights import WeightsError, load_weights

CONFIG = {
    "c4": "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml",
    "fpn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
}
LOUD = (
    "fvcore.common.checkpoint",
    "detectron2.checkpoint.c2_model_loading",
    "detectron2.config.compat",
)


def can_build(depth: int, width: float) -> bool:
    """Tell whether Detectron2 has such a trunk: basic blocks come in one width only."""
    return depth >= 50 or width == 1


def maps(
    backbone: Backbone, weights_path: Path, layout: Layout, pictures: list[Path]
) -> tuple[str, dict[str, Tensor]]:
    """Load the file into a detector and run its trunk; also name the version."""
    import detectron2

    arrays, metadata = load_weights(weights_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside Detectron2, none of the user's making
        model, channel_order = _detector(backbone, metadata, layout)
    if weights_path.suffix == ".safetensors":  # which Detectron2 does not read
        model.load_state_dict(tensors(arrays), strict=False)
    else:
        load(model, weights_path)
    _require_loaded(model, arrays, layout)
    return f"detectron2 {detectron2.__version__}", _run(model, layout, pictures, channel_order)


def _detector(
    backbone: Backbone, metadata: dict[str, Any], layout: Layout
) -> tuple[nn.Module, str]:
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    cfg = model_zoo.get_config(CONFIG[layout])
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.PIXEL_MEAN = list(metadata["pixel_mean"])
    cfg.MODEL.PIXEL_STD = list(metadata["pixel_std"])
    cfg.INPUT.FORMAT = metadata["format"]
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.NORM, resnets.STRIDE_IN_1X1 = backbone.depth, "BN", False
    resnets.STEM_OUT_CHANNELS = resnets.WIDTH_PER_GROUP = stem_channels(backbone.width)
    resnets.RES2_OUT_CHANNELS = backbone.build().channels("layer1")
    levels = ["res2", "res3", "res4"] + (["res5"] if layout == "fpn" else [])
    resnets.OUT_FEATURES = levels
    # the heads play no part; small ones are built faster
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    return build_model(cfg).eval(), cfg.INPUT.FORMAT


def load(model: nn.Module, weights_path: Path) -> None:
    """Let Detectron2's own checkpointer fill a model, without its lists of what did not match."""
    from detectron2.checkpoint import DetectionCheckpointer

    # it would list the heads, which are not in the file; what must be loaded is checked right after
    with only_errors_logged():
        DetectionCheckpointer(model).load(str(weights_path))


@contextlib.contextmanager
def only_errors_logged() -> Iterator[None]:
    """Keep quiet the loggers of Detectron2 that speak of what is checked here."""
    loggers = [logging.getLogger(name) for name in LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _require_loaded(model: nn.Module, arrays: dict[str, Any], layout: Layout) -> None:
    state = model.state_dict()
    homes = (TRUNK[layout] + "stem.", TRUNK[layout] + "res", LAST_STAGE[layout])
    wanted = {k for k in state if k.startswith(homes) and not k.endswith("num_batches_tracked")}
    lost = [k for k, v in arrays.items() if k not in state or not _equal(state[k], v)]
    if lost or wanted - set(arrays):
        raise WeightsError(
            f"Detectron2 did not take {len(lost)} of the written weights (e.g. {lost[:3]}) and "
            f"{len(wanted - set(arrays))} of its trunk's were not written "
            f"(e.g. {sorted(wanted - set(arrays))[:3]})"
        )


def _equal(loaded: Tensor, written: Any) -> bool:
    return torch.equal(loaded, torch.from_numpy(written))


@torch.no_grad()
def _run(model: Any, layout: Layout, pictures: list[Path], channel_order: str) -> dict[str, Tensor]:
    from detectron2.data.detection_utils import read_image

    read = [read_image(str(path), format=channel_order) for path in pictures]
    inputs = [{"image": torch.from_numpy(p.transpose(2, 0, 1).copy())} for p in read]
    images = model.preprocess_image(inputs).tensor
    if layout == "fpn":
        found: dict[str, Tensor] = model.backbone.bottom_up(images)
        return found
    found = model.backbone(images)
    return {**found, "res5": model.roi_heads.res5(found["res4"])}
