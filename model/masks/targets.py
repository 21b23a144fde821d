"""The mask target of an RoI: its part of its object's mask (Mask R-CNN, Sec. 3), for all RoIs of a batch at once."""

import torch
from torch import Tensor

from model.boxes.ground_truth import FlatMasks

POINTS = 2
"""Along each side of a cell, at which a mask is looked at, as RoIAlign does."""


def mask_targets(boxes: Tensor, objects: Tensor, masks: FlatMasks, mask_size: int) -> Tensor:
    """Each RoI's part of its object's mask, resampled to [R, M, M] floats, 0 or 1.

    Sampled as RoIAlign would (2 x 2 points a cell, bilinear, pixel-aligned; zeros around the mask's window), the
    inverse of how masks are pasted: a cell belongs to the mask where the mean of its points is at least 0.5.

    Args:
        boxes: RoIs [R, 4] XYXY in pixels of the images that the masks were drawn on.
        objects: int64 [R], the row of `masks.places` of each RoI's object; all of them have masks.
        masks: of all objects.
        mask_size: M.
    """
    if boxes.shape[0] == 0:
        return boxes.new_zeros((0, mask_size, mask_size))
    place = masks.places[objects]
    first, height, width = place[:, 0], place[:, 1], place[:, 2]
    corner = place[:, 3:].to(boxes.dtype) - 1.0
    rows, row_weights = _samples(boxes[:, 1] - corner[:, 1], boxes[:, 3] - corner[:, 1], height, mask_size)
    columns, column_weights = _samples(
        boxes[:, 0] - corner[:, 0], boxes[:, 2] - corner[:, 0], width, mask_size
    )
    sampled = boxes.new_zeros(())
    for row, row_weight in zip(rows, row_weights, strict=True):
        start = (first[:, None] + row * width[:, None])[:, :, None]
        for column, column_weight in zip(columns, column_weights, strict=True):
            value = masks.pixels[start + column[:, None, :]]
            sampled = sampled + value * (row_weight[:, :, None] * column_weight[:, None, :])
    cells = sampled.view(-1, mask_size, POINTS, mask_size, POINTS)
    mean = (cells[:, :, 0, :, 0] + cells[:, :, 0, :, 1] + cells[:, :, 1, :, 0] + cells[:, :, 1, :, 1]) / 4
    return (mean >= 0.5).to(boxes.dtype)


def _samples(
    low: Tensor, high: Tensor, cells: Tensor, mask_size: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Along one axis the two pixels that each of the 2 M points lies between, int64 [R, 2 M], and their weights.

    `low` and `high` [R] are the RoI's ends, counted from one pixel before the mask, which has `cells` [R] pixels. A
    pixel beyond the mask has weight 0, and a number that is one of the mask's.
    """
    cell = ((high - low) / mask_size)[:, None]
    steps = torch.arange(POINTS * mask_size, device=low.device)
    of_cell, point = torch.div(steps, POINTS, rounding_mode="floor"), steps % POINTS
    at = (low - 0.5)[:, None] + of_cell * cell + (point + 0.5) * cell / POINTS
    below = at.floor()
    part = at - below
    last = cells[:, None] - 1
    number = below.to(torch.int64) - 1
    indices, weights = [], []
    for index, weight in ((number, 1.0 - part), (number + 1, part)):
        inside = (index >= 0) & (index <= last)
        indices.append(index.clamp(min=0).minimum(last))
        weights.append(weight * inside)
    return (indices[0], indices[1]), (weights[0], weights[1])
