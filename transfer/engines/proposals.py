"""Region proposals of the torchvision engine: torchvision's, with Detectron2's anchors and losses.

Shape letters: B images, R anchors of a batch, A anchors of an image.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import batched_nms, clip_boxes_to_image

from transfer.engines.recipe import Recipe


class Anchors(AnchorGenerator):
    """Anchors at fixed strides, not rounded, all ratios of a size together.

    torchvision rounds them and infers the stride from the padded image, which is off by up to a
    pixel per cell on a C4 map of an image whose side is no multiple of 16.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
    ) -> None:
        levels = len(strides)
        self.strides = tuple(strides)
        super().__init__(_per_level(sizes, levels), _per_level(ratios, levels))

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (the base class's signature)
    ) -> Tensor:
        """Boxes around the origin; the ratio is height over width."""
        boxes = []
        for size in scales:
            for ratio in aspect_ratios:
                width = math.sqrt(size * size / ratio)
                height = width * ratio
                boxes.append((-width / 2, -height / 2, width / 2, height / 2))
        return torch.tensor(boxes, dtype=dtype, device=device)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """All anchors of each image, level after level."""
        dtype = torch.promote_types(
            feature_maps[0].dtype, torch.float32
        )  # 16 bits would round them
        self.set_cell_anchors(dtype, feature_maps[0].device)
        strides = [
            [torch.tensor(stride, device=feature_maps[0].device)] * 2 for stride in self.strides
        ]
        grids = [list(feature_map.shape[-2:]) for feature_map in feature_maps]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)


def _per_level(values: Sequence[Sequence[float]], levels: int) -> tuple[tuple[float, ...], ...]:
    if len(values) not in (1, levels):
        raise ValueError(
            f"anchors for {len(values)} levels given, the layout has {levels}: {values}"
        )
    repeated = values if len(values) == levels else [values[0]] * levels
    return tuple(tuple(level) for level in repeated)


class Corrections(BoxCoder):
    """Boxes and their corrections, in float32 whatever the precision of the network."""

    def decode(self, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
        """Apply corrections; half precision would round a box of 800 pixels to multiples of 4."""
        decoded: Tensor = super().decode(rel_codes.float(), boxes)
        return decoded


class ProposalNetwork(RegionProposalNetwork):
    """Region proposal network with L1 and cross-entropy losses over a fixed normaliser.

    Proposals are ranked by their logits, whose sigmoid makes ties of sure ones, and every box with
    an extent counts; torchvision drops those below 1e-3 pixels.
    """

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Best boxes of each image, and their logits.

        Args:
            proposals: (B, A, 4).
            objectness: logits, any shape of B * A values.
        """
        logits_BA = objectness.detach().reshape(len(proposals), -1)
        counts = torch.tensor(num_anchors_per_level, device=proposals.device)
        levels_A = torch.arange(len(counts), device=proposals.device).repeat_interleave(counts)
        top_BA = self._get_top_n_idx(logits_BA, num_anchors_per_level)
        found = []
        for all_boxes, logits, top, shape in zip(
            proposals, logits_BA, top_BA, image_shapes, strict=True
        ):
            boxes = clip_boxes_to_image(all_boxes[top], shape)
            has_extent = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            boxes, top = boxes[has_extent], top[has_extent]
            keep = batched_nms(boxes, logits[top].float(), levels_A[top], self.nms_thresh)
            keep = keep[: self.post_nms_top_n()]
            found.append((boxes[keep], logits[top[keep]]))
        return [boxes for boxes, _ in found], [logits for _, logits in found]

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Sum over the sampled anchors, divided by how many there should be, not were found."""
        objectness, pred_bbox_deltas = objectness.float(), pred_bbox_deltas.float()
        positive, negative = self.fg_bg_sampler(labels)
        positive_R = torch.cat(positive).bool()
        sampled_R = positive_R | torch.cat(negative).bool()
        normaliser = self.fg_bg_sampler.batch_size_per_image * len(labels)
        box_loss = F.l1_loss(
            pred_bbox_deltas[positive_R], torch.cat(regression_targets)[positive_R], reduction="sum"
        )
        objectness_loss = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled_R], torch.cat(labels)[sampled_R], reduction="sum"
        )
        return objectness_loss / normaliser, box_loss / normaliser


def build_proposals(recipe: Recipe, channels: int, strides: Sequence[int]) -> ProposalNetwork:
    """Build the network for feature maps of ``channels`` channels at the given strides."""
    anchors = Anchors(
        recipe["MODEL.ANCHOR_GENERATOR.SIZES"],
        recipe["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"],
        strides,
    )
    background, foreground = recipe["MODEL.RPN.IOU_THRESHOLDS"]
    network = ProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=foreground,
        bg_iou_thresh=background,
        batch_size_per_image=recipe["MODEL.RPN.BATCH_SIZE_PER_IMAGE"],
        positive_fraction=recipe["MODEL.RPN.POSITIVE_FRACTION"],
        pre_nms_top_n={
            "training": recipe["MODEL.RPN.PRE_NMS_TOPK_TRAIN"],
            "testing": recipe["MODEL.RPN.PRE_NMS_TOPK_TEST"],
        },
        post_nms_top_n={
            "training": recipe["MODEL.RPN.POST_NMS_TOPK_TRAIN"],
            "testing": recipe["MODEL.RPN.POST_NMS_TOPK_TEST"],
        },
        nms_thresh=recipe["MODEL.RPN.NMS_THRESH"],
    )
    network.box_coder = Corrections((1.0, 1.0, 1.0, 1.0))
    return network
