"""RoI heads of the torchvision engine: torchvision's sampling, Detectron2's pooling and losses.

Shape letters: R regions of a batch, C channels, K object classes (class K is the background), M
side of a mask map.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align

from transfer.engines.masks import Shape, cut
from transfer.engines.proposals import Corrections
from transfer.engines.recipe import Recipe

Norm = Callable[[int], nn.Module]
NormFactory = Callable[[str], Norm | None]

CANONICAL_SIDE, CANONICAL_LEVEL = (
    224,
    4,
)  # a 224-pixel region is read from stride 16 (FPN paper, Eq. 1)


class RegionPooler(nn.Module):
    """Half-pixel aligned RoIAlign from one map, or from the pyramid level that fits a region.

    Args:
        strides: of the maps, finest first.
    """

    def __init__(self, output_size: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.output_size = output_size
        self.strides = tuple(strides)

    def forward(self, features: Sequence[Tensor], regions: list[Tensor]) -> Tensor:
        """Pool to (R, C, output_size, output_size)."""
        index = torch.cat([boxes.new_full((len(boxes), 1), i) for i, boxes in enumerate(regions)])
        regions_R5 = torch.cat([index, torch.cat(regions)], dim=1)
        if len(self.strides) == 1:
            return self._align(features[0], regions_R5, self.strides[0])
        levels_R = self._levels(regions_R5[:, 1:])
        channels = features[0].shape[1]
        pooled = features[0].new_zeros(
            len(regions_R5), channels, self.output_size, self.output_size
        )
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            chosen = torch.where(levels_R == level)[0]
            aligned = self._align(feature, regions_R5[chosen], stride)
            pooled = pooled.index_put((chosen,), aligned.to(pooled.dtype))
        return pooled

    def _align(self, feature: Tensor, regions_R5: Tensor, stride: int) -> Tensor:
        # corners in half precision would lie pixels off
        aligned: Tensor = roi_align(
            feature.float(), regions_R5.float(), self.output_size, 1.0 / stride, aligned=True
        )
        return aligned.to(feature.dtype)

    def _levels(self, boxes_R4: Tensor) -> Tensor:
        side_R = ((boxes_R4[:, 2] - boxes_R4[:, 0]) * (boxes_R4[:, 3] - boxes_R4[:, 1])).sqrt()
        level_R = torch.floor(CANONICAL_LEVEL + torch.log2(side_R / CANONICAL_SIDE + 1e-8))
        finest = self.strides[0].bit_length() - 1
        return (level_R - finest).clamp(0, len(self.strides) - 1).to(torch.int64)


class BoxPredictor(nn.Module):
    """Class logits (background last) and one box correction per object class."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(inputs, num_classes + 1)
        self.bbox_pred = nn.Linear(inputs, num_classes * 4)
        for layer, deviation in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, vectors_RC: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (R, K + 1) and corrections (R, 4K), both float32."""
        return self.cls_score(vectors_RC).float(), self.bbox_pred(vectors_RC).float()


class AverageHead(nn.Module):
    """C4: the trunk's last stage, the norm after it, and the mean over the region.

    A mask head reads the same maps before the mean: its gradient reaches the stage too.
    """

    def __init__(self, stage: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.res5 = stage
        self.norm = norm

    def maps(self, pooled_RCMM: Tensor) -> Tensor:
        """Return the last stage's map of each region, half as large."""
        maps: Tensor = self.norm(self.res5(pooled_RCMM))
        return maps

    def forward(self, pooled_RCMM: Tensor) -> Tensor:
        """Return one vector per region."""
        return self.maps(pooled_RCMM).mean(dim=(2, 3))


def build_box_head(recipe: Recipe, channels: int, norm_of: NormFactory) -> tuple[nn.Module, int]:
    """FPN: convolutions, then fully connected layers; returns head and number of outputs."""
    side = recipe["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"]
    convs = [recipe["MODEL.ROI_BOX_HEAD.CONV_DIM"]] * recipe["MODEL.ROI_BOX_HEAD.NUM_CONV"]
    layers, channels = conv_layers(channels, convs, norm_of(recipe["MODEL.ROI_BOX_HEAD.NORM"]))
    sizes = [channels * side * side]
    sizes += [recipe["MODEL.ROI_BOX_HEAD.FC_DIM"]] * recipe["MODEL.ROI_BOX_HEAD.NUM_FC"]
    layers.append(nn.Flatten())
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        nn.init.kaiming_uniform_(linear.weight, a=1)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers), sizes[-1]


class MaskHead(nn.Sequential):
    """Layers of which the last, a 1x1 convolution, has one map per class.

    Only the map of a region's own class is computed: the others take part in no loss and no
    prediction, and with the 1,203 classes of LVIS they would fill gigabytes.
    """

    def forward(  # type: ignore[override]
        self, maps_RCMM: Tensor, classes_R: Tensor
    ) -> Tensor:
        """Return the logits (R, 2M, 2M) of each region's class, float32."""
        *layers, predictor = self
        assert isinstance(predictor, nn.Conv2d) and predictor.bias is not None
        for layer in layers:
            maps_RCMM = layer(maps_RCMM)
        # embedding: unlike indexing it has a gradient that repeats bit for bit on a GPU
        weight_RC = F.embedding(classes_R, predictor.weight.flatten(1))
        bias_R1 = F.embedding(classes_R, predictor.bias[:, None])
        logits_R1P = torch.bmm(weight_RC[:, None], maps_RCMM.flatten(2))
        own_RP: Tensor = logits_R1P.squeeze(1).float() + bias_R1
        return own_RP.reshape(len(own_RP), *maps_RCMM.shape[2:])


def build_mask_head(
    recipe: Recipe, channels: int, num_classes: int, norm_of: NormFactory
) -> MaskHead:
    """Convolutions (C4: none), one doubling of the resolution, one map per class."""
    width = recipe["MODEL.ROI_MASK_HEAD.CONV_DIM"]
    convs = [width] * recipe["MODEL.ROI_MASK_HEAD.NUM_CONV"]
    layers, channels = conv_layers(channels, convs, norm_of(recipe["MODEL.ROI_MASK_HEAD.NORM"]))
    upsample = nn.ConvTranspose2d(channels, width, 2, 2)
    predictor = nn.Conv2d(width, num_classes, 1)
    nn.init.kaiming_normal_(upsample.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(predictor.weight, std=0.001)
    for layer in (upsample, predictor):
        nn.init.constant_(layer.bias, 0)  # type: ignore[arg-type]
    return MaskHead(*layers, upsample, nn.ReLU(inplace=True), predictor)


def conv_layers(
    channels: int, widths: Sequence[int], norm: Norm | None
) -> tuple[list[nn.Module], int]:
    """3x3 convolutions with norm (or bias) and ReLU; returns them and their number of outputs."""
    layers: list[nn.Module] = []
    for width in widths:
        conv = nn.Conv2d(channels, width, 3, padding=1, bias=norm is None)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        layers += [conv, *([] if norm is None else [norm(width)]), nn.ReLU(inplace=True)]
        channels = width
    return layers, channels


class RegionHeads(RoIHeads):
    """Second stage: sample regions, classify and correct them, segment them.

    Args:
        recipe: matching, sampling and output thresholds.
        pooler: reads a region's features for the box head.
        box_head: pooled features to one vector per region.
        predictor: vectors to class logits and corrections.
        mask_head: features of a region to the map of its class; None without masks.
        mask_pooler: reads them from the pyramid; None in C4, where the mask head reads what the
            box head averages.
    """

    def __init__(
        self,
        recipe: Recipe,
        pooler: RegionPooler,
        box_head: nn.Module,
        predictor: BoxPredictor,
        mask_head: MaskHead | None = None,
        mask_pooler: RegionPooler | None = None,
    ) -> None:
        threshold = recipe["MODEL.ROI_HEADS.IOU_THRESHOLDS"][0]
        super().__init__(
            pooler,
            box_head,
            predictor,
            fg_iou_thresh=threshold,
            bg_iou_thresh=threshold,
            batch_size_per_image=recipe["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"],
            positive_fraction=recipe["MODEL.ROI_HEADS.POSITIVE_FRACTION"],
            bbox_reg_weights=None,
            score_thresh=recipe["MODEL.ROI_HEADS.SCORE_THRESH_TEST"],
            nms_thresh=recipe["MODEL.ROI_HEADS.NMS_THRESH_TEST"],
            detections_per_img=recipe["TEST.DETECTIONS_PER_IMAGE"],
        )
        self.box_coder = Corrections(recipe["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"])
        self.region_mask_pooler = mask_pooler
        self.region_mask_head = mask_head

    def losses(
        self,
        features: Sequence[Tensor],
        proposals: list[Tensor],
        targets: list[dict[str, Tensor]],
        shapes: Sequence[Sequence[Shape] | None],
    ) -> dict[str, Tensor]:
        """Classification, correction and mask losses of sampled regions.

        Args:
            targets: per image ``boxes`` and ``labels`` (class + 1).
            shapes: per image its objects' outlines, in the order of the boxes; only for masks.
        """
        regions, matches, labels, corrections = self.select_training_samples(proposals, targets)
        maps_RCMM, vectors = self._box_features(features, regions)
        logits, predicted = self.box_predictor(vectors)
        labels_R = torch.cat(labels)
        found = {
            "loss_cls": F.cross_entropy(logits, _background_last(labels_R, logits.shape[1] - 1)),
            "loss_box_reg": _correction_loss(predicted, torch.cat(corrections), labels_R),
        }
        if self.region_mask_head is not None:
            objects = [torch.where(label > 0)[0] for label in labels]
            positive = [boxes[index] for boxes, index in zip(regions, objects, strict=True)]
            if self.region_mask_pooler is not None:
                maps_RCMM = self.region_mask_pooler(features, positive)
            else:
                maps_RCMM = maps_RCMM[labels_R > 0]
            logits_RMM = self.region_mask_head(maps_RCMM, labels_R[labels_R > 0] - 1)
            owners = [match[index] for match, index in zip(matches, objects, strict=True)]
            found["loss_mask"] = _mask_loss(logits_RMM, positive, owners, shapes)
        return found

    def _box_features(
        self, features: Sequence[Tensor], regions: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Map and vector of each region."""
        pooled_RCMM = self.box_roi_pool(features, regions)
        if isinstance(self.box_head, AverageHead):
            pooled_RCMM = self.box_head.maps(pooled_RCMM)
            return pooled_RCMM, pooled_RCMM.mean(dim=(2, 3))
        return pooled_RCMM, self.box_head(pooled_RCMM)

    def detect(
        self, features: Sequence[Tensor], proposals: list[Tensor], shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Boxes, scores, classes and, for masks, probability maps of each image, best first."""
        _, vectors = self._box_features(features, proposals)
        logits, corrections = self.box_predictor(vectors)
        counts = [len(boxes) for boxes in proposals]
        boxes_RK4 = self.box_coder.decode(corrections, proposals).reshape(
            len(logits), logits.shape[1] - 1, 4
        )
        scores_RK = logits.softmax(dim=1)[:, :-1]
        boxes, scores = torch.split(boxes_RK4, counts), torch.split(scores_RK, counts)
        found = [self._filter(*own) for own in zip(boxes, scores, shapes, strict=True)]
        if self.region_mask_head is not None:
            self._add_masks(features, found)
        return found

    def _filter(
        self, boxes_RK4: Tensor, scores_RK: Tensor, shape: tuple[int, int]
    ) -> dict[str, Tensor]:
        boxes_RK4 = clip_boxes_to_image(boxes_RK4, shape)
        region, classes = torch.where(scores_RK > self.score_thresh)
        boxes, scores = boxes_RK4[region, classes], scores_RK[region, classes]
        keep = batched_nms(boxes, scores, classes, self.nms_thresh)[: self.detections_per_img]
        return {"boxes": boxes[keep], "scores": scores[keep], "classes": classes[keep]}

    def _add_masks(self, features: Sequence[Tensor], found: list[dict[str, Tensor]]) -> None:
        assert self.region_mask_head is not None
        regions = [item["boxes"] for item in found]
        if self.region_mask_pooler is not None:
            maps_RCMM = self.region_mask_pooler(features, regions)
        else:
            maps_RCMM, _ = self._box_features(features, regions)
        logits_RMM = self.region_mask_head(maps_RCMM, torch.cat([i["classes"] for i in found]))
        for item, logits in zip(found, logits_RMM.split([len(r) for r in regions]), strict=True):
            item["masks"] = logits.sigmoid()


def _mask_loss(
    logits_RMM: Tensor,
    regions: Sequence[Tensor],
    owners: Sequence[Tensor],
    shapes: Sequence[Sequence[Shape] | None],
) -> Tensor:
    """Binary cross-entropy of objects' regions against the outlines cut by them.

    Args:
        owners: per image the index of the object that each region belongs to.
    """
    side = logits_RMM.shape[-1]
    wanted = []
    for boxes, owner, outlines in zip(regions, owners, shapes, strict=True):
        assert outlines is not None, "a mask detector's samples have outlines"
        pairs = zip(owner.tolist(), boxes.cpu().numpy(), strict=True)
        wanted += [cut(outlines[index], box, side) for index, box in pairs]
    if not wanted:
        return logits_RMM.sum() * 0
    wanted_RMM = torch.from_numpy(np.stack(wanted)).to(logits_RMM)
    return F.binary_cross_entropy_with_logits(logits_RMM, wanted_RMM)


def _background_last(labels_R: Tensor, num_classes: int) -> Tensor:
    """torchvision's 0 = background, 1...K become 0...K-1 and K = background."""
    return torch.where(labels_R == 0, num_classes, labels_R - 1)


def _correction_loss(predicted_RK4: Tensor, wanted_R4: Tensor, labels_R: Tensor) -> Tensor:
    """L1 of the objects' own corrections, divided by all regions, background included."""
    objects = torch.where(labels_R > 0)[0]
    own = predicted_RK4.reshape(len(labels_R), -1, 4)[objects, labels_R[objects] - 1]
    return F.l1_loss(own, wanted_R4[objects], reduction="sum") / max(len(labels_R), 1)
