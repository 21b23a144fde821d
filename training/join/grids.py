"""Masks of all sources in one form: probabilities on a grid over the object's own box, kept as bytes.

A pixel is looked up in a grid as the network's own masks are pasted (`model.masks.run_lengths`); cells of a network's
canvas are sampled as its mask targets are (`model.masks.targets`): at 2 x 2 points a cell, whose mean counts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from torch import Tensor

from model.masks.run_lengths import mask_run_lengths
from training.evaluate.precision import masks_from_counts
from training.evaluate.truth import RunLengths

SIDE = 56
"""Cells along each side of a grid: twice the side of the networks' own masks."""
POINTS = 2
OUTSIDE = -8.0
"""The logit of a canvas outside the box of a prior mask."""

Maps = NDArray[np.uint8]
"""Masks [N, SIDE, SIDE], each cell 255 times its probability: from 128 on it is in the mask."""
Boxes = NDArray[np.floating[Any]]
"""[N, 4] XYXY in pixels of the image."""


def as_maps(probabilities: Tensor) -> Maps:
    """Probabilities [N, M, M] over the boxes, of any M, as grids."""
    if probabilities.shape[0] and probabilities.shape[-1] != SIDE:
        probabilities = F.interpolate(probabilities[:, None], (SIDE, SIDE), mode="bilinear")[:, 0]
    maps: Maps = probabilities.float().mul(255).round().to(torch.uint8).cpu().numpy()
    return maps.reshape(-1, SIDE, SIDE)


def on_boxes(logits: NDArray[np.float32], boxes: Boxes) -> Maps:
    """Logits [N, S, S] of a square canvas as grids over the boxes, which are shares of the canvas's side."""
    if not len(logits):
        return np.zeros((0, SIDE, SIDE), np.uint8)
    step = (torch.arange(SIDE * POINTS, dtype=torch.float32) + 0.5) / (SIDE * POINTS)
    x0, y0, x1, y1 = torch.from_numpy(boxes.astype(np.float32) * 2 - 1).T
    columns = x0[:, None] + (x1 - x0)[:, None] * step
    rows = y0[:, None] + (y1 - y0)[:, None] * step
    places = torch.stack(
        [columns[:, None, :].expand(-1, len(step), -1), rows[:, :, None].expand(-1, -1, len(step))], dim=-1
    )
    canvas = torch.from_numpy(np.ascontiguousarray(logits, np.float32))[:, None]
    seen = F.grid_sample(canvas, places, padding_mode="border", align_corners=False)
    return as_maps(F.avg_pool2d(seen.sigmoid(), POINTS)[:, 0])


def on_canvas(maps: Maps, boxes: Boxes, side: int) -> NDArray[np.float32]:
    """The inverse of `on_boxes`: logits [N, side, side] of a square canvas, `OUTSIDE` beyond the boxes."""
    centres = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    x0, y0, x1, y1 = torch.from_numpy(boxes.astype(np.float32)).T[:, :, None]
    columns, rows = (centres - x0) / (x1 - x0) * 2 - 1, (centres - y0) / (y1 - y0) * 2 - 1
    places = torch.stack(
        [columns[:, None, :].expand(-1, side, -1), rows[:, :, None].expand(-1, -1, side)], dim=-1
    )
    grid = torch.from_numpy(logits_of(maps))[:, None]
    seen = F.grid_sample(grid, places, padding_mode="border", align_corners=False)[:, 0]
    inside = (columns.abs() <= 1)[:, None, :] & (rows.abs() <= 1)[:, :, None]
    found: NDArray[np.float32] = torch.where(inside, seen, OUTSIDE).numpy()
    return found


def truth_on_boxes(truth: Sequence[RunLengths], boxes: Boxes) -> Maps:
    """True masks, each of an image, as grids: the share of each cell's points that lie in the mask."""
    maps = np.zeros((len(truth), SIDE, SIDE), np.uint8)
    step = (np.arange(SIDE * POINTS) + 0.5) / (SIDE * POINTS)
    for number, (mask, (x0, y0, x1, y1)) in enumerate(zip(truth, boxes, strict=True)):
        pixels = mask_utils.decode(mask)
        height, width = pixels.shape
        rows = np.clip((y0 + (y1 - y0) * step).astype(int), 0, height - 1)
        columns = np.clip((x0 + (x1 - x0) * step).astype(int), 0, width - 1)
        points = pixels[np.ix_(rows, columns)].reshape(SIDE, POINTS, SIDE, POINTS)
        maps[number] = np.rint(255 * points.mean(axis=(1, 3)))
    return maps


def filled(count: int) -> Maps:
    """`count` boxes, each filled."""
    return np.full((count, SIDE, SIDE), 255, np.uint8)


def logits_of(maps: Maps) -> NDArray[np.float32]:
    """The logits of grids, at most 6.2 on either side: half a step of a byte from 0 and 1."""
    probabilities = np.clip(maps.astype(np.float32) / 255, 0.5 / 255, 1 - 0.5 / 255)
    found: NDArray[np.float32] = np.log(probabilities / (1 - probabilities))
    return found


def run_lengths(maps: Maps, boxes: Boxes, height: int, width: int) -> list[RunLengths]:
    """The pixels of each grid's mask in one image, none of them beyond its box."""
    probabilities = torch.from_numpy(maps.astype(np.float32) / 255)
    counts, offsets = mask_run_lengths(
        probabilities, torch.from_numpy(boxes.astype(np.float32)), height, width
    )
    return masks_from_counts(counts, offsets, height, width)


def agreement(one: Maps, other: Maps) -> NDArray[np.float64]:
    """IoU of the masks of two sources, object by object [N], on their grid; 1 where both are empty."""
    first, second = one >= 128, other >= 128
    union = (first | second).sum(axis=(1, 2))
    found: NDArray[np.float64] = np.where(
        union, (first & second).sum(axis=(1, 2)) / np.maximum(union, 1), 1.0
    )
    return found


def certainty(maps: Maps) -> NDArray[np.float64]:
    """The IoU [N] that a mask expects of itself if its probabilities are right; 0 where it is empty."""
    inside = maps >= 128
    right = (maps * inside).sum(axis=(1, 2), dtype=np.float64) / 255
    union = inside.sum(axis=(1, 2)) + (maps * ~inside).sum(axis=(1, 2), dtype=np.float64) / 255
    found: NDArray[np.float64] = right / np.maximum(union, 1e-9)
    return found
