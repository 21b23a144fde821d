"""Which proposals the box branch learns from (Fast R-CNN, Sec. 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

from model.rpn import covered_by


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


def sample(labels: Tensor, count: int, positive_fraction: float) -> Tensor:
    """Indices of at most `count` proposals, at most `positive_fraction` of them foreground, drawn at random."""
    foreground = torch.where(labels > 0)[0]
    background = torch.where(labels == 0)[0]
    positives = min(foreground.numel(), int(count * positive_fraction))
    negatives = min(background.numel(), count - positives)
    chosen_f = foreground[torch.randperm(foreground.numel(), device=labels.device)[:positives]]
    chosen_b = background[torch.randperm(background.numel(), device=labels.device)[:negatives]]
    return torch.cat([chosen_f, chosen_b])
