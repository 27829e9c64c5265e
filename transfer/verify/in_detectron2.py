"""The detector's side computed by Detectron2 itself, under its standard or under a user's settings.

Only the trunk is built, so that heads which a user's own program registers are not needed. The file
goes in as a copy of its names, numbers and flags: a pickle of others is never opened by Detectron2.
"""

import pickle
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from transfer.detectron2_names import bare_name, has_own_head, trunk_names
from transfer.detectron2_parity import load, only_errors_logged
from transfer.engines.detectron2 import EXTRA_NORM_HEAD, build_last_stage
from transfer.engines.recipe import trunk_values
from transfer.verify.detector_file import DetectorFile
from transfer.verify.findings import VerifyError
from transfer.verify.maps import Maps
from transfer.weights import PICKLE_PROTOCOL


class NotRun(Exception):
    """Detectron2 could read a recipe only by evaluating what stands in it."""


@dataclass(frozen=True)
class Found:
    """What Detectron2 made of a file."""

    version: str
    maps: Maps
    loaded: int  # tensors of the trunk that are the file's after loading
    total: int


def standard_config(file: DetectorFile, layout: str) -> Any:
    """Detectron2's configuration of a detector that treats pictures as the file needs."""
    cfg = _defaults()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(file.needs.mean), list(file.needs.std)
    cfg.INPUT.FORMAT = file.needs.channel_order
    for key, value in trunk_values(file.depth, file.width).items():
        cfg.MODEL.RESNETS[key] = value
    if not has_own_head(layout, file.depth):
        cfg.MODEL.ROI_HEADS.NAME = EXTRA_NORM_HEAD
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = file.needs.stride_in_1x1
    _give_out_all_levels(cfg, layout)
    return cfg


def _defaults() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside Detectron2
        from detectron2.config import get_cfg

        return get_cfg()


def users_config(path: Path, layout: str) -> Any:
    """Detectron2's own reading of a YAML; only which maps come out is changed."""
    cfg = _defaults()
    try:
        with only_errors_logged():
            cfg.merge_from_file(str(path), allow_unsafe=False)
    except yaml.constructor.ConstructorError:
        raise NotRun("not run in Detectron2, which would evaluate Python in the recipe") from None
    except (KeyError, ValueError, AssertionError, RuntimeError) as error:
        raise VerifyError(f"Detectron2 refuses {path}: {error}") from None
    _give_out_all_levels(cfg, layout)
    return cfg


def _give_out_all_levels(cfg: Any, layout: str) -> None:
    """Build the trunk of such a detector, whoever would stand around it, and show its maps."""
    features = ["res2", "res3", "res4"] + ["res5"] * (layout != "c4")
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = features
    fpn = "fpn_" if layout == "fpn" else ""
    cfg.MODEL.BACKBONE.NAME = f"build_resnet_{fpn}backbone"


def run(
    file: DetectorFile,
    trunk: Mapping[str, Tensor],
    cfg: Any,
    layout: str,
    pictures: list[Path],
    *,
    heuristics: bool,
) -> Found:
    """Load the file into Detectron2's trunk and run it.

    Args:
        trunk: under bare names what the file means; counted is what of it arrived.

    Raises:
        VerifyError: Detectron2 cannot build or fill such a trunk.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside Detectron2
            import detectron2

            model = _trunk(cfg, layout).eval()
            _load_copy(model, file, heuristics)
            maps = _maps(model, cfg, layout, pictures)
    except (AssertionError, KeyError, ValueError, NotImplementedError, RuntimeError) as error:
        raise VerifyError(f"Detectron2 cannot build or fill such a trunk: {error}") from None
    state = model.state_dict()
    names = trunk_names(layout, file.depth, file.width)
    loaded = sum(_arrived(state, trunk, name, layout) for name in names)
    return Found(f"detectron2 {detectron2.__version__}", maps, loaded, len(names))


def _trunk(cfg: Any, layout: str) -> nn.Module:
    """A detector that has no more than its trunk, under a detector's names."""
    from detectron2.modeling import build_backbone
    from detectron2.modeling.roi_heads import Res5ROIHeads

    model = nn.Module()
    model.backbone = build_backbone(cfg)
    if layout == "c4":
        model.roi_heads = nn.Module()
        is_ours = cfg.MODEL.ROI_HEADS.NAME == EXTRA_NORM_HEAD
        build = build_last_stage if is_ours else Res5ROIHeads._build_res5_block
        model.roi_heads.res5 = build(cfg)[0]
    return model


def _load_copy(model: nn.Module, file: DetectorFile, heuristics: bool) -> None:
    content = {
        "model": {name: value.numpy() for name, value in file.tensors.items()},
        "__author__": file.author or "unknown",
        "matching_heuristics": heuristics,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pkl"
        with path.open("wb") as opened:
            pickle.dump(content, opened, protocol=PICKLE_PROTOCOL)
        load(model, path)


def _arrived(
    state: Mapping[str, Tensor], trunk: Mapping[str, Tensor], name: str, layout: str
) -> bool:
    bare = bare_name(name, layout)
    return name in state and bare in trunk and torch.equal(state[name], trunk[bare])


@torch.no_grad()
def _maps(model: Any, cfg: Any, layout: str, pictures: list[Path]) -> Maps:
    from detectron2.data.detection_utils import read_image

    read = [read_image(str(path), format=cfg.INPUT.FORMAT) for path in pictures]
    images_BCHW = torch.stack([torch.from_numpy(p.transpose(2, 0, 1).copy()) for p in read])
    mean, std = (
        torch.tensor(v).view(-1, 1, 1) for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    images_BCHW = (images_BCHW - mean) / std  # as GeneralizedRCNN.preprocess_image
    if layout == "fpn":
        found: Maps = model.backbone.bottom_up(images_BCHW)
        return found
    found = model.backbone(images_BCHW)
    return {**found, "res5": model.roi_heads.res5(found["res4"])} if layout == "c4" else found
