"""The portable engine: Faster and Mask R-CNN of torchvision's parts from a Detectron2 recipe.

On the same weights, images and draws it gives Detectron2's logits, losses and detections to
rounding (a test). docs/engines.md has the figures and what remains different: draws of the
augmentation, RLE objects beside polygons, EXIF rotation, precision of 16-bit boxes.

Shape letters: H x W pixels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from sslbench.config import ConfigError
from sslbench.resnet import ResNet
from sslbench.rng import seeded
from transfer.engines.base import Detections
from transfer.engines.heads import (
    AverageHead,
    BoxPredictor,
    Norm,
    RegionHeads,
    RegionPooler,
    build_box_head,
    build_mask_head,
)
from transfer.engines.loading import Weights, load_exactly, tensors
from transfer.engines.masks import paste
from transfer.engines.proposals import ProposalNetwork, build_proposals
from transfer.engines.recipe import Recipe
from transfer.engines.samples import Sample, SampleMapper
from transfer.naming import from_detectron2
from transfer.task import TaskConfig

PYRAMID = ("layer1", "layer2", "layer3", "layer4")
TRUNK, LAST_STAGE = "features.trunk.", "heads.box_head.res5."
HEADS = {"c4": "SSLBenchRes5HeadExtraNorm", "fpn": "StandardROIHeads"}


class C4Features(nn.Module):
    """The stem and three stages of a trunk; its last stage belongs to the RoI head."""

    strides = (16,)
    pad_to = 1

    def __init__(self, trunk: ResNet) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the one map."""
        return list(self.trunk.maps(images, ("layer3",)).values())


class PyramidFeatures(nn.Module):
    """A trunk with a feature pyramid of five levels; RoI heads use the first four."""

    strides = (4, 8, 16, 32, 64)
    pad_to = 32

    def __init__(self, trunk: ResNet, channels: int, norm: Norm | None) -> None:
        super().__init__()
        self.trunk = trunk
        self.pyramid = FeaturePyramidNetwork(
            [trunk.channels(name) for name in PYRAMID], channels, LastLevelMaxPool(), norm
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the levels, finest first."""
        return list(self.pyramid(self.trunk.maps(images, PYRAMID)).values())


class Detector(nn.Module):
    """Features, proposals, RoI heads.

    Args:
        mean: per channel, of 0...255 RGB.
        deviation: per channel, of 0...255 RGB.
    """

    def __init__(
        self,
        features: C4Features | PyramidFeatures,
        proposals: ProposalNetwork,
        heads: RegionHeads,
        mean: Sequence[float],
        deviation: Sequence[float],
    ) -> None:
        super().__init__()
        self.features = features
        self.proposals = proposals
        self.heads = heads
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1), persistent=False)

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Named loss terms."""
        images = self._batch(samples)
        targets = [self._target(sample) for sample in samples]
        maps = self.features(images.tensors)
        regions, found = self.proposals(images, dict(enumerate(maps)), targets)
        terms = {
            "loss_rpn_cls": found["loss_objectness"],
            "loss_rpn_loc": found["loss_rpn_box_reg"],
        }
        shapes = [sample.shapes_N for sample in samples]
        return terms | self.heads.losses(self._region_maps(maps), regions, targets, shapes)

    def detect(self, samples: Sequence[Sample]) -> list[dict[str, Tensor]]:
        """Detections per image, in the pixels of the resized image."""
        images = self._batch(samples)
        maps = self.features(images.tensors)
        regions, _ = self.proposals(images, dict(enumerate(maps)))
        return self.heads.detect(self._region_maps(maps), regions, images.image_sizes)

    def _region_maps(self, maps: list[Tensor]) -> list[Tensor]:
        return maps[: len(self.heads.box_roi_pool.strides)]

    def _batch(self, samples: Sequence[Sample]) -> ImageList:
        """Normalise and pad at the lower right to one size."""
        shapes = [(sample.image_3HW.shape[1], sample.image_3HW.shape[2]) for sample in samples]
        step = self.features.pad_to
        height, width = (-(-max(sides) // step) * step for sides in zip(*shapes, strict=True))
        batch = self.mean.new_zeros(len(samples), 3, height, width)
        for target, sample, (h, w) in zip(batch, samples, shapes, strict=True):
            target[:, :h, :w] = (sample.image_3HW.to(self.mean) - self.mean) / self.deviation
        return ImageList(batch, shapes)

    def _target(self, sample: Sample) -> dict[str, Tensor]:
        assert sample.boxes_N4 is not None and sample.classes_N is not None
        device = self.mean.device
        # torchvision's sampler counts classes from 1; 0 is its background
        target = {
            "boxes": sample.boxes_N4.to(device),
            "labels": sample.classes_N.to(device) + 1,
        }
        return target


def norm_factory(name: str) -> Norm | None:
    """Detectron2's name of a norm -> its module; None for no norm.

    One process normalises over its own batch, so that both kinds of ``SyncBN`` are plain batch norm
    there, in Detectron2 too.
    """
    known: dict[str, Norm | None] = {
        "": None,
        "BN": nn.BatchNorm2d,
        "SyncBN": nn.BatchNorm2d,
        "naiveSyncBN": nn.BatchNorm2d,
        "FrozenBN": FrozenBatchNorm2d,
    }
    if name not in known:
        named = ", ".join(repr(norm) for norm in known)
        raise ConfigError(f"norm {name!r} is not built by the torchvision engine; known: {named}")
    return known[name]


def build_detector(recipe: Recipe, num_classes: int, layout: str) -> Detector:
    """Build the detector of a recipe with fresh weights."""
    if recipe["MODEL.ROI_HEADS.NAME"] != HEADS[layout]:
        name = recipe["MODEL.ROI_HEADS.NAME"]
        raise ConfigError(
            f"{recipe.name}: MODEL.ROI_HEADS.NAME is {name!r}; the torchvision engine builds "
            f"{HEADS[layout]!r} for layout {layout!r}"
        )
    norm = norm_factory(recipe["MODEL.RESNETS.NORM"])
    assert norm is not None, "a ResNet has norms"
    trunk = ResNet(recipe["MODEL.RESNETS.DEPTH"], recipe.width, norm)
    build = _build_c4 if layout == "c4" else _build_fpn
    features, heads = build(recipe, trunk, norm, num_classes)
    channels = trunk.channels("layer3") if layout == "c4" else recipe["MODEL.FPN.OUT_CHANNELS"]
    proposals = build_proposals(recipe, channels, features.strides)
    return Detector(
        features, proposals, heads, recipe["MODEL.PIXEL_MEAN"], recipe["MODEL.PIXEL_STD"]
    )


def _build_c4(
    recipe: Recipe, trunk: ResNet, norm: Norm, num_classes: int
) -> tuple[C4Features, RegionHeads]:
    channels = trunk.channels("layer4")
    head = AverageHead(trunk.get_submodule("layer4"), norm(channels))
    del trunk.layer4
    features = C4Features(trunk)
    pooler = RegionPooler(recipe["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"], features.strides)
    predictor, masks = BoxPredictor(channels, num_classes), None
    if recipe["MODEL.MASK_ON"]:
        masks = build_mask_head(recipe, channels, num_classes, norm_factory)
    return features, RegionHeads(recipe, pooler, head, predictor, masks)


def _build_fpn(
    recipe: Recipe, trunk: ResNet, norm: Norm, num_classes: int
) -> tuple[PyramidFeatures, RegionHeads]:
    channels = recipe["MODEL.FPN.OUT_CHANNELS"]
    features = PyramidFeatures(trunk, channels, norm_factory(recipe["MODEL.FPN.NORM"]))
    strides = features.strides[:4]
    head, outputs = build_box_head(recipe, channels, norm_factory)
    return features, RegionHeads(
        recipe,
        RegionPooler(recipe["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"], strides),
        head,
        BoxPredictor(outputs, num_classes),
        build_mask_head(recipe, channels, num_classes, norm_factory),
        RegionPooler(recipe["MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION"], strides),
    )


class TorchvisionEngine:
    """See ``Engine``.

    Args:
        task: resolved.
        classes: names of the data's classes.
        weights: converted for the task's layout.
        device: torch device string.
    """

    name = "torchvision"

    def __init__(
        self,
        task: TaskConfig,
        classes: Sequence[str],
        weights: Weights,
        device: str = "cpu",
    ) -> None:
        recipe = task.values()
        recipe.require_portable()
        weights.require_fit(task.layout, recipe)
        with seeded(task.seed, "heads"):
            model = build_detector(recipe, len(classes), task.layout)
        canonical = tensors(from_detectron2(weights.arrays, task.layout))
        trunk = {_place(task.layout, name): tensor for name, tensor in canonical.items()}
        self.fresh = load_exactly(model, trunk, _is_trunk, weights.path)
        self.model = model.to(device)
        self.mapper = SampleMapper(recipe)

    def losses(self, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """See ``Engine``."""
        return self.model.losses(batch)

    @torch.no_grad()
    def predict(self, batch: Sequence[Sample]) -> list[Detections]:
        """See ``Engine``."""
        found = self.model.detect(batch)
        return [_to_original(item, sample) for item, sample in zip(found, batch, strict=True)]


def _place(layout: str, name: str) -> str:
    """Where the detector keeps a canonical trunk tensor."""
    if layout == "c4" and name.startswith("layer4."):
        return LAST_STAGE + name.removeprefix("layer4.")
    return TRUNK + name


def _is_trunk(name: str) -> bool:
    return name.startswith((TRUNK, LAST_STAGE))


def _to_original(found: Mapping[str, Tensor], sample: Sample) -> Detections:
    """Scale to the original image, clip, drop what became empty, stretch the masks."""
    height, width = sample.image_3HW.shape[1:]
    factor = torch.tensor([sample.width / width, sample.height / height] * 2)
    limit = torch.tensor([sample.width, sample.height] * 2, dtype=torch.float32)
    boxes_N4 = (found["boxes"].cpu() * factor).clamp(min=torch.zeros(4), max=limit)
    kept = torch.where((boxes_N4[:, 2:] > boxes_N4[:, :2]).all(dim=1))[0]
    masks = None
    if "masks" in found:
        masks = paste(found["masks"].cpu()[kept], boxes_N4[kept], sample.height, sample.width)
    return Detections(
        boxes_N4[kept].numpy(),
        found["scores"].cpu()[kept].numpy(),
        found["classes"].cpu()[kept].numpy(),
        masks,
    )
