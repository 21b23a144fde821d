"""Detections of one image -> the body of the answer (border 5), compact JSON in ASCII.

The same detections always give the same bytes. Boxes are rounded to hundredths of a pixel, scores to millionths. Run
lengths become COCO's compressed text by pycocotools; no mask is ever drawn here.

Knows nothing of the server; NumPy and pycocotools are all it needs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


@dataclass(frozen=True, kw_only=True)
class Category:
    """A class of the model: its id and name in the data set, and whether it had masks in training (set A)."""

    id: int
    name: str
    mask_supervised: bool


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What the model found in one image, in pixels of the upright original, the best first.

    boxes: float32 [D, 4] XYXY. scores: float32 [D]. labels: int64 [D], 1..C. rle_counts: int64, the masks'
    column-major run lengths one after the other, each beginning with background. rle_offsets: int64 [D+1]; those of
    mask d lie from rle_offsets[d] to rle_offsets[d+1].
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    rle_counts: np.ndarray
    rle_offsets: np.ndarray


def answer_body(
    detections: Detections,
    categories: dict[int, Category],
    *,
    height: int,
    width: int,
    model_name: str,
    model_version: str,
) -> bytes:
    """The body of a good answer; `categories` maps labels to what they stand for."""
    found = []
    for d in range(len(detections.labels)):
        category = categories[int(detections.labels[d])]
        x1, y1, x2, y2 = (float(value) for value in detections.boxes[d])
        counts = detections.rle_counts[detections.rle_offsets[d] : detections.rle_offsets[d + 1]]
        found.append(
            {
                "category_id": category.id,
                "category": category.name,
                "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(float(detections.scores[d]), 6),
                "area": int(counts[1::2].sum()),
                "mask_supervised": category.mask_supervised,
                "segmentation": run_length_text(counts, height=height, width=width),
            }
        )
    return _compact(
        {
            "model": {"name": model_name, "version": model_version},
            "image": {"height": height, "width": width},
            "detections": found,
        }
    )


def run_length_text(counts: np.ndarray, *, height: int, width: int) -> dict[str, Any]:
    """One mask's column-major run lengths in COCO's compressed form, `{"size": [h, w], "counts": "..."}`.

    Raises:
        ValueError: the run lengths do not cover the image exactly.
    """
    if int(counts.sum()) != height * width:
        raise ValueError(
            f"run lengths cover {int(counts.sum())} pixels of an image of {height} x {width} = {height * width}"
        )
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def error_body(code: int, kind: str, message: str) -> bytes:
    """The body of an error: `{"error": {"code", "type", "message"}}`."""
    return _compact({"error": {"code": code, "type": kind, "message": message}})


def _compact(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")
