"""Answers of two devices or precisions beside each other: which detections of the one the other has too."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

SURE = 0.3
"""Detections of this score or more are looked for on the other side, where any score will do."""
SAME_BOX = 0.7
"""IoU of boxes, and the same category, from which on two detections are one."""

Found = Mapping[str, Any]
"""A detection, as the service answers it; of a mask its run lengths."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """sure: detections that were looked for. matched: those found. The means, and the least or most, over the matched.

    more: sure detections of the other side that the first has not.
    """

    sure: int
    matched: int
    more: int
    box_iou: float
    mask_iou: float
    least_mask_iou: float
    score_difference: float

    def cells(self) -> tuple[str, ...]:
        """Under `HEADERS`; "-" where nothing was matched."""
        counts = (f"{self.matched} of {self.sure}", str(self.more))
        if not self.matched:
            return (*counts, "-", "-", "-", "-")
        ious = (f"{self.box_iou:.4f}", f"{self.mask_iou:.4f}", f"{self.least_mask_iou:.3f}")
        return (*counts, *ious, f"{self.score_difference:.4f}")


HEADERS = ("matched", "more", "box IoU, mean", "mask IoU, mean", "least", "score, most apart")


def detections_of(body: bytes) -> list[dict[str, Any]]:
    """The detections of an answer to one image."""
    found: list[dict[str, Any]] = json.loads(body)["detections"]
    return found


def compare(first: Sequence[Sequence[Found]], other: Sequence[Sequence[Found]]) -> Compared:
    """Detections per image, as the service answers them, with masks as run lengths or without."""
    boxes, masks, scores = [], [], []
    sure = more = 0
    for ours, theirs in zip(first, other, strict=True):
        wanted = [one for one in ours if one["score"] >= SURE]
        pairs = _pairs(wanted, theirs)
        sure += len(wanted)
        others = [one for one in theirs if one["score"] >= SURE]
        more += len(others) - len(_pairs(others, ours))
        for one, two, iou in pairs:
            boxes.append(iou)
            scores.append(abs(one["score"] - two["score"]))
            if "counts" in (one.get("segmentation") or {}) and "counts" in (two.get("segmentation") or {}):
                masks.append(mask_iou(one["segmentation"], two["segmentation"]))
    return Compared(
        sure=sure,
        matched=len(boxes),
        more=more,
        box_iou=float(np.mean(boxes)) if boxes else 0.0,
        mask_iou=float(np.mean(masks)) if masks else 0.0,
        least_mask_iou=min(masks, default=0.0),
        score_difference=max(scores, default=0.0),
    )


def mask_iou(one: Found, two: Found) -> float:
    """Of two masks in compressed run lengths; 1 where both are empty."""
    encoded = [{"size": each["size"], "counts": each["counts"].encode()} for each in (one, two)]
    if not any(coco_mask.area(each) for each in encoded):
        return 1.0
    return float(coco_mask.iou(encoded[:1], encoded[1:], [0])[0][0])


def _pairs(wanted: Sequence[Found], found: Sequence[Found]) -> list[tuple[Found, Found, float]]:
    """Each wanted one with the best of the found ones of its category that no better one has taken."""
    left = list(found)
    pairs = []
    for one in wanted:
        near = [
            (box_iou(one["bbox"], two["bbox"]), place)
            for place, two in enumerate(left)
            if one["category_id"] == two["category_id"]
        ]
        best, place = max(near, default=(0.0, -1))
        if best >= SAME_BOX:
            pairs.append((one, left.pop(place), best))
    return pairs


def box_iou(one: Sequence[float], two: Sequence[float]) -> float:
    """Of two boxes [x, y, width, height]."""
    width = min(one[0] + one[2], two[0] + two[2]) - max(one[0], two[0])
    height = min(one[1] + one[3], two[1] + two[3]) - max(one[1], two[1])
    both = max(width, 0.0) * max(height, 0.0)
    either = one[2] * one[3] + two[2] * two[3] - both
    return both / either if either > 0 else 0.0
