"""Losses of the box and mask branches (Fast R-CNN, Sec. 2.3; Learning to Segment Every Thing, Sec. 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over C+1 classes, the mean over sampled RoIs; zero where none was sampled."""
    if labels.numel() == 0:
        return logits.sum() * 0.0
    return F.cross_entropy(logits, labels)


def box_loss(deltas: Tensor, targets: Tensor, sampled: int) -> Tensor:
    """Smooth L1 (beta 1/9, torchvision's) over the foreground's own class, divided by all sampled RoIs."""
    return F.smooth_l1_loss(deltas, targets, beta=1.0 / 9, reduction="sum") / max(sampled, 1)


def mask_loss(logits_RMM: Tensor, targets_RMM: Tensor) -> Tensor:
    """Per-pixel binary cross-entropy over RoIs of set A, the only ones that get here (Sec. 3.2).

    With none the loss is a zero that still reaches every mask parameter, so that distributed workers
    do not wait for a gradient that never comes.
    """
    if targets_RMM.shape[0] == 0:
        return logits_RMM.sum() * 0.0
    return F.binary_cross_entropy_with_logits(logits_RMM, targets_RMM)


def mask_targets(
    boxes: Tensor, matched: Tensor, masks: list[Tensor], windows: Tensor, mask_size: int
) -> Tensor:
    """Each RoI's part of its object's mask, resampled to [R, M, M] floats in [0, 1].

    Args:
        boxes: RoIs [R, 4] XYXY in the original image's pixels.
        matched: int64 [R], the object each RoI belongs to; all of them have masks.
        masks: per object the mask cropped to its window, uint8 [h, w].
        windows: int64 [N, 4], the window of each object.
        mask_size: M.

    Sampled by RoIAlign (2 x 2 points a cell, pixel-aligned), the inverse of how masks are pasted.
    """
    targets = boxes.new_zeros((boxes.shape[0], mask_size, mask_size))
    for n in torch.unique(matched).tolist():
        rois = torch.where(matched == n)[0]
        crop = masks[n].to(boxes.device, torch.float32)[None, None]
        # A ring of zeros: RoIAlign would otherwise carry the border's value half a pixel outwards.
        crop = F.pad(crop, (1, 1, 1, 1))
        corner = windows[n, :2].to(boxes) - 1.0
        local = boxes[rois] - torch.cat([corner, corner])
        targets[rois] = roi_align(crop, [local], (mask_size, mask_size), 1.0, 2, aligned=True)[:, 0]
    return (targets >= 0.5).to(boxes.dtype)
