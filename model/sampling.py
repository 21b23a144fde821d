"""Which anchors and proposals are learnt from (Faster R-CNN, Sec. 3.1.2; Fast R-CNN, Sec. 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou


def covered_by(boxes_R4: Tensor, regions_M4: Tensor) -> Tensor:
    """Largest fraction of each box's own area that one region covers, [R]; zeros where there is no region."""
    if regions_M4.shape[0] == 0:
        return boxes_R4.new_zeros(boxes_R4.shape[0])
    top_left = torch.maximum(boxes_R4[:, None, :2], regions_M4[None, :, :2])
    bottom_right = torch.minimum(boxes_R4[:, None, 2:], regions_M4[None, :, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(dim=2)
    area = (boxes_R4[:, 2:] - boxes_R4[:, :2]).clamp(min=1e-6).prod(dim=1)
    return (overlap / area[:, None]).max(dim=1).values


def match_to_objects(
    proposals: Tensor, boxes: Tensor, labels: Tensor, crowd_boxes: Tensor, foreground_iou: float
) -> tuple[Tensor, Tensor]:
    """Label of each proposal (0 background, -1 left out) and the object it overlaps most.

    A proposal is foreground at an IoU of `foreground_iou` or more. Background that lies mostly in a
    crowd region is left out.
    """
    if boxes.shape[0] == 0:
        matched = torch.zeros(proposals.shape[0], dtype=torch.int64, device=proposals.device)
        label = torch.zeros_like(matched)
    else:
        iou, matched = box_iou(proposals, boxes).max(dim=1)
        label = torch.where(iou >= foreground_iou, labels[matched], torch.zeros_like(matched))
    in_crowd = covered_by(proposals, crowd_boxes) > 0.5
    return torch.where(in_crowd & (label == 0), torch.full_like(label, -1), label), matched


def sample(
    labels: Tensor, count: int, positive_fraction: float, generator: torch.Generator | None = None
) -> Tensor:
    """Indices of at most `count` candidates, at most `positive_fraction` of them foreground, drawn at random.

    Labels above 0 are foreground, 0 is background, others are left out. `generator` lies on the labels' device;
    None is torch's own.
    """
    foreground = torch.where(labels > 0)[0]
    background = torch.where(labels == 0)[0]
    positives = min(foreground.numel(), int(count * positive_fraction))
    negatives = min(background.numel(), count - positives)
    chosen_f = torch.randperm(foreground.numel(), device=labels.device, generator=generator)[:positives]
    chosen_b = torch.randperm(background.numel(), device=labels.device, generator=generator)[:negatives]
    return torch.cat([foreground[chosen_f], background[chosen_b]])
