"""Whether two engines found the same things in an image."""

import json
from typing import Any

from pycocotools import mask as coco_mask

LEAST_IOU = 0.9


def agreement(one: bytes, other: bytes) -> float:
    """Of the detections of two answers in JSON, the share that has a partner in the other: of the same class, box and
    mask each with an IoU of 0.9 or more; 1 where both are empty.

    Not all have one even where no number differs by more than 1e-4: what lies at the threshold, or is as good as its
    neighbour for the suppression, falls to either side.
    """
    first, second = (json.loads(body)["detections"] for body in (one, other))
    if not first and not second:
        return 1.0
    return 2 * _partners(first, second) / (len(first) + len(second))


def _partners(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> int:
    """How many of the first have a partner of their own among the second."""
    left = list(second)
    found = 0
    for mine in first:
        alike = [one for one in left if one["category_id"] == mine["category_id"]]
        best = max(alike, key=lambda one: _overlap(mine, one), default=None)
        if best is not None and _overlap(mine, best) >= LEAST_IOU:
            left.remove(best)
            found += 1
    return found


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The lesser of the IoU of boxes and masks."""
    box = coco_mask.iou([a["bbox"]], [b["bbox"]], [0])[0][0]
    if a["area"] == b["area"] == 0:  # two empty masks are the same, though no pixel is in both
        return float(box)
    mask = coco_mask.iou([a["segmentation"]], [b["segmentation"]], [0])[0][0]
    return float(min(box, mask))
