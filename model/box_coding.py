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


def decode_boxes(deltas: Tensor, proposals: Tensor, largest_log_scale: float = LARGEST_LOG_SCALE) -> Tensor:
    """Boxes XYXY [R, 4] of the deltas [R, 4] from the proposals [R, 4]."""
    size_p = proposals[:, 2:] - proposals[:, :2]
    centre_p = proposals[:, :2] + 0.5 * size_p
    centre = deltas[:, :2] / 10.0 * size_p + centre_p
    half = 0.5 * torch.exp((deltas[:, 2:] / 5.0).clamp(max=largest_log_scale)) * size_p
    return torch.cat([centre - half, centre + half], dim=1)
