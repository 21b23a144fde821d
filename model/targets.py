"""The target of one training image and the window of an object's mask (Sec. 3.1: of set A, or taught)."""

from typing import NotRequired, TypedDict

import torch
from torch import Tensor

Colours = tuple[float, float, float, float]
"""Factors of brightness, contrast and saturation, and the turn of the hue in full circles (`training.data.colour`)."""


class Target(TypedDict):
    """What is known about one image: N objects and M crowd regions, boxes XYXY in pixels.

    An object has a mask only where its class belongs to set A, or its mask is one that a class may learn from besides
    (`training.data.splits`), and its segmentation was sound; `masks[i]` is then the part of the mask inside
    `mask_windows(boxes)[i]`, and a [0, 0] tensor otherwise.
    """

    image_id: int
    boxes: Tensor  # float32 [N, 4], 0 <= x0 < x1 <= width, 0 <= y0 < y1 <= height
    labels: Tensor  # int64 [N], 1..C; 0 is background and never occurs here
    has_mask: Tensor  # bool [N]
    masks: list[Tensor]  # N of uint8 [h_i, w_i], values 0 and 1
    crowd_boxes: Tensor  # float32 [M, 4], never negatives, never positives
    size: NotRequired[tuple[int, int]]  # (height, width) of the image in the network; absent: its own
    colours: NotRequired[Colours]  # how its colours are still to be changed; absent: not at all
    keypoints: NotRequired[Tensor]  # float32 [N, K, 3]: x, y (first pixel 0 to 1), COCO's visibility
    seen: NotRequired[list[Tensor]]  # what a frozen detector sees of the image, see `model.boxes.seen`
    mirrored: NotRequired[Tensor]  # int64 [K], with keypoints: whose place each takes in a mirrored image
    mask_weights: NotRequired[
        Tensor
    ]  # float32 [N] in (0, 1], of each object's mask in the mask loss; absent: 1


def without_objects() -> Target:
    """The target of an image of which nothing is known."""
    return {
        "image_id": 0,
        "boxes": torch.zeros((0, 4)),
        "labels": torch.zeros(0, dtype=torch.int64),
        "has_mask": torch.zeros(0, dtype=torch.bool),
        "masks": [],
        "crowd_boxes": torch.zeros((0, 4)),
    }


def mask_windows(boxes: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """The smallest window of whole pixels that holds each box: int64 [N, 4], XYXY with exclusive ends.

    Ends are rounded outwards and then clipped to the image, so a box of positive area inside the image has
    a window of at least one pixel. `boxes` is float [N, 4] XYXY; N may be 0. The height and width of the image are
    one for all boxes, or int64 [N].
    """
    low = boxes[:, :2].floor().to(torch.int64)
    high = boxes[:, 2:].ceil().to(torch.int64)
    if isinstance(height, Tensor) and isinstance(width, Tensor):
        ends = torch.stack([width, height], dim=1)
    else:
        ends = torch.tensor([width, height], dtype=torch.int64, device=boxes.device)
    zero = torch.zeros_like(ends)
    return torch.cat([torch.clamp(low, zero, ends), torch.clamp(high, zero, ends)], dim=1)
