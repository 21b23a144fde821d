"""Boxes as offsets from proposals (R-CNN, appendix C), with the weights (10, 10, 5, 5) of Fast R-CNN.

Plain functions over two tensors of equal length: the coder that torchvision ships decodes every class
of every proposal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_LOG_SCALE = math.log(1000.0 / 16)
"""Decoded sides are kept below 62.5 times the proposal's, as Detectron does."""


def encode_boxes(boxes: Tensor, proposals: Tensor) -> Tensor:
    """Deltas [R, 4] that bring each proposal to its box (both XYXY, [R, 4])."""
    size_p = proposals[:, 2:] - proposals[:, :2]
    size_b = boxes[:, 2:] - boxes[:, :2]
    centre_p = proposals[:, :2] + 0.5 * size_p
    centre_b = boxes[:, :2] + 0.5 * size_b
    return torch.cat([10.0 * (centre_b - centre_p) / size_p, 5.0 * torch.log(size_b / size_p)], dim=1)


def decode_boxes(deltas: Tensor, proposals: Tensor) -> Tensor:
    """Boxes XYXY [R, 4] of the deltas [R, 4] from the proposals [R, 4]."""
    return moved_boxes(torch.cat([deltas[:, :2] / 10.0, deltas[:, 2:] / 5.0], dim=1), proposals)


def moved_boxes(deltas: Tensor, boxes: Tensor, largest_log_scale: float = LARGEST_LOG_SCALE) -> Tensor:
    """Boxes XYXY [..., 4] of deltas [..., 4] with the weights (1, 1, 1, 1), as an RPN has them."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = deltas[..., :2] * size + (boxes[..., :2] + 0.5 * size)
    half = 0.5 * torch.exp(deltas[..., 2:].clamp(max=largest_log_scale)) * size
    return torch.cat([centre - half, centre + half], dim=-1)


def within(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes [..., 4] cut at the border of an image of `size` [..., 2], height and width."""
    limit = size.flip(-1)
    return torch.minimum(boxes.clamp(min=0), torch.cat([limit, limit], dim=-1))
