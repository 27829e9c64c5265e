"""The reference engine: Detectron2's model, mapper and augmentation from its own YAML.

Detectron2 is imported only when the engine is used.
"""

import copy
import importlib
import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sslbench.config import ConfigError
from sslbench.datasets import DataError, Record, decode_rgb
from sslbench.resnet import blocks_of
from sslbench.rng import seeded
from transfer.engines.base import Detections, Draw
from transfer.engines.loading import Weights, load_exactly, tensors
from transfer.engines.masks import encode
from transfer.engines.samples import learnable
from transfer.naming import LAST_STAGE, TRUNK
from transfer.task import TaskConfig

BOTTLENECKS_FROM = 50  # depth; shallower trunks have basic blocks
EXTRA_NORM_HEAD = "SSLBenchRes5HeadExtraNorm"  # ROI_HEADS.NAME in our C4 recipes


def hush_known_warnings() -> None:
    """Silence what Detectron2 sets off in a newer torch: three harmless notices, repeated."""
    for message in ("`torch.jit.script` is deprecated", "torch.meshgrid: in an upcoming release"):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def require_working_detectron2() -> None:
    """Import Detectron2 and its compiled part once, before anything else needs them.

    Raises:
        ConfigError: it is missing, or was built for another torch, CUDA or Python.
    """
    try:
        importlib.import_module("detectron2._C")
        importlib.import_module("detectron2.modeling")
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"engine detectron2 cannot be imported: {error}; reinstall Detectron2 for the torch "
            f"of this environment ({torch.__version__}), or set engine=torchvision, which is "
            "another stage with numbers of its own"
        ) from error


def register_extra_norm_head() -> None:
    """Add the C4 head with a norm after res5 to Detectron2's registry, once."""
    from detectron2.layers import get_norm
    from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads

    if EXTRA_NORM_HEAD in ROI_HEADS_REGISTRY:
        return

    class SSLBenchRes5HeadExtraNorm(Res5ROIHeads):
        @classmethod
        def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
            stage, channels = build_last_stage(cfg)
            stage.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
            return stage, channels

    ROI_HEADS_REGISTRY.register(SSLBenchRes5HeadExtraNorm)


def build_last_stage(cfg: Any) -> tuple[nn.Sequential, int]:
    """Build res5 of a C4 head, and count its channels.

    Detectron2's own head has bottlenecks at any depth; a ResNet-18 or -34 keeps its basic blocks.
    """
    from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
    from detectron2.modeling.roi_heads import Res5ROIHeads

    depth = cfg.MODEL.RESNETS.DEPTH
    if depth >= BOTTLENECKS_FROM:
        stage, channels = Res5ROIHeads._build_res5_block(cfg)
        return stage, channels
    num_blocks, channels = blocks_of(depth)[-1], cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 8
    blocks = ResNet.make_stage(
        BasicBlock,
        num_blocks,
        stride_per_block=[2] + [1] * (num_blocks - 1),
        in_channels=channels // 2,
        out_channels=channels,
        norm=cfg.MODEL.RESNETS.NORM,
    )
    return nn.Sequential(*blocks), channels


def build_config(task: TaskConfig, num_classes: int, device: str) -> Any:
    """Detectron2's config node of a resolved task.

    Raises:
        ConfigError: Detectron2 does not know a key or refuses a value.
    """
    recipe = task.values()
    if recipe["MODEL.RESNETS.DEPTH"] < BOTTLENECKS_FROM and recipe.width != 1:
        raise ConfigError(
            f"{recipe.name}: Detectron2 builds a ResNet-{recipe['MODEL.RESNETS.DEPTH']} of full "
            f"width only, not of width {recipe.width:g}; set engine=torchvision for a thinner one"
        )
    from detectron2.config import get_cfg
    from yacs.config import CfgNode

    cfg = get_cfg()
    try:
        cfg.merge_from_other_cfg(CfgNode(copy.deepcopy(task.recipe_values)))
    except (KeyError, ValueError, AssertionError) as error:
        raise ConfigError(f"recipe {task.recipe}: Detectron2 refuses it: {error}") from None
    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.freeze()
    return cfg


class RecordMapper:
    """Record -> Detectron2's input, through its own ``DatasetMapper``.

    Args:
        cfg: decides augmentation and masks.
    """

    def __init__(self, cfg: Any) -> None:
        from detectron2.data import DatasetMapper

        self._with_masks = bool(cfg.MODEL.MASK_ON)
        self._train = DatasetMapper(cfg, is_train=True)
        self._test = DatasetMapper(cfg, is_train=False)

    def train(self, record: Record, draw: Draw) -> dict[str, Any]:
        """See ``Mapper``; Detectron2 draws its augmentation from the global generators."""
        objects = learnable(record, with_masks=self._with_masks)
        if self._with_masks and any(isinstance(item.segmentation, dict) for item in objects):
            raise DataError(
                f"{record.path} has an object outlined by an RLE; Detectron2 learns from polygons. "
                "Set engine=torchvision, or outline it by polygons"
            )
        with seeded(draw.seed, "augment", draw.iteration, draw.slot):
            return self._map(self._train, replace(record, objects=objects))

    def test(self, record: Record) -> dict[str, Any]:
        """See ``Mapper``."""
        return self._map(self._test, record)

    @staticmethod
    def _map(mapper: Any, record: Record) -> dict[str, Any]:
        from detectron2.data.detection_utils import SizeMismatchError

        try:
            mapped: dict[str, Any] = mapper(dataset_dict(record))
        except SizeMismatchError as error:
            raise DataError(f"{record.path} does not fit its annotations: {error}") from None
        except OSError:
            decode_rgb(record.path.read_bytes(), str(record.path))  # its message names the image
            raise
        if mapped["image"].shape[0] != 3:
            raise DataError(f"{record.path} is not an RGB image for Detectron2")
        return mapped


def dataset_dict(record: Record) -> dict[str, Any]:
    """One image in Detectron2's data set format."""
    from detectron2.structures import BoxMode

    annotations = []
    for item in record.objects:
        annotation: dict[str, Any] = {
            # lists of integers would become integer arrays, and resizing would truncate them
            "bbox": [float(edge) for edge in item.box],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": item.category,
            "iscrowd": int(item.crowd),
        }
        if isinstance(item.segmentation, dict):
            annotation["segmentation"] = item.segmentation
        elif item.segmentation:
            annotation["segmentation"] = [[float(v) for v in part] for part in item.segmentation]
        annotations.append(annotation)
    return {
        "file_name": str(record.path),
        "image_id": record.image_id,
        "height": record.height,
        "width": record.width,
        "annotations": annotations,
    }


class Detectron2Engine:
    """See ``Engine``; arguments as ``TorchvisionEngine``."""

    name = "detectron2"

    def __init__(
        self, task: TaskConfig, classes: Sequence[str], weights: Weights, device: str = "cpu"
    ) -> None:
        hush_known_warnings()
        require_working_detectron2()
        from detectron2.modeling import build_model

        register_extra_norm_head()
        weights.require_fit(task.layout, task.values())
        cfg = build_config(task, len(classes), device)
        with seeded(task.seed, "heads"), redirect_stdout(io.StringIO()):
            self.model = build_model(cfg)
        self.fresh = load_exactly(
            self.model, tensors(weights.arrays), partial(_is_trunk, task.layout), weights.path
        )
        self.mapper = RecordMapper(cfg)

    def losses(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """See ``Engine``."""
        from detectron2.utils.events import EventStorage

        with EventStorage():  # its heads write statistics to the storage in use
            losses: dict[str, Tensor] = self.model(list(batch))
        return losses

    @torch.no_grad()
    def predict(self, batch: Sequence[dict[str, Any]]) -> list[Detections]:
        """See ``Engine``."""
        return [_detections(output["instances"].to("cpu")) for output in self.model(list(batch))]


def _is_trunk(layout: str, name: str) -> bool:
    """Whether a detector's tensor belongs to the trunk; the extra norm after res5 does not."""
    stages = (TRUNK[layout] + "stem.", TRUNK[layout] + "res", LAST_STAGE[layout])
    return name.startswith(stages) and not name.startswith(LAST_STAGE[layout] + "norm.")


def _detections(instances: Any) -> Detections:
    masks = None
    if instances.has("pred_masks"):
        masks = tuple(encode(mask) for mask in instances.pred_masks.numpy())
    return Detections(
        instances.pred_boxes.tensor.numpy(),
        instances.scores.numpy(),
        instances.pred_classes.numpy(),
        masks,
    )
