"""The region proposal network of Faster R-CNN on FPN: torchvision's, with crowd regions never negatives."""

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead


def covered_by(boxes_R4: Tensor, regions_M4: Tensor) -> Tensor:
    """Largest fraction of each box's own area that one region covers, [R]; zeros where there is no region."""
    if regions_M4.shape[0] == 0:
        return boxes_R4.new_zeros(boxes_R4.shape[0])
    top_left = torch.maximum(boxes_R4[:, None, :2], regions_M4[None, :, :2])
    bottom_right = torch.minimum(boxes_R4[:, None, 2:], regions_M4[None, :, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(dim=2)
    area = (boxes_R4[:, 2:] - boxes_R4[:, :2]).clamp(min=1e-6).prod(dim=1)
    return (overlap / area[:, None]).max(dim=1).values


class Float32RPNHead(RPNHead):
    """torchvision's head with float32 answers: anchors are decoded in float32 whatever the features' type."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness and box deltas per level."""
        logits: list[Tensor] = []
        deltas: list[Tensor] = []
        for feature in x:
            hidden = self.conv(feature)
            logits.append(self.cls_logits(hidden).float())
            deltas.append(self.bbox_pred(hidden).float())
        return logits, deltas


class CrowdAwareRPN(RegionProposalNetwork):
    """An anchor that lies mostly in a crowd region is no negative: nobody knows what is in there."""

    @torch.jit.unused  # training only; TorchScript has no super()
    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As torchvision's: labels 1, 0 or -1 (left out) and the matched box of each anchor."""
        labels, matched = super().assign_targets_to_anchors(anchors, targets)
        kept: list[Tensor] = []
        for label, anchor, target in zip(labels, anchors, targets, strict=True):
            in_crowd = covered_by(anchor, target["crowd_boxes"]) > 0.5
            kept.append(torch.where(in_crowd & (label == 0), torch.full_like(label, -1.0), label))
        return kept, matched


def build_rpn(
    *,
    channels: int,
    anchor_sizes: tuple[int, ...],
    aspect_ratios: tuple[float, ...],
    foreground_iou: float,
    background_iou: float,
    batch_per_image: int,
    positive_fraction: float,
    pre_nms_train: int,
    pre_nms_test: int,
    post_nms_train: int,
    post_nms_test: int,
    nms_iou: float,
) -> CrowdAwareRPN:
    """The RPN over as many levels as there are anchor sizes."""
    anchors = AnchorGenerator(tuple((size,) for size in anchor_sizes), (aspect_ratios,) * len(anchor_sizes))
    head = Float32RPNHead(channels, anchors.num_anchors_per_location()[0])
    return CrowdAwareRPN(
        anchors,
        head,
        foreground_iou,
        background_iou,
        batch_per_image,
        positive_fraction,
        {"training": pre_nms_train, "testing": pre_nms_test},
        {"training": post_nms_train, "testing": post_nms_test},
        nms_iou,
    )
