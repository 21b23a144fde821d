"""Detections of one image -> the body of the answer (border 5), compact JSON in ASCII.

The same detections always give the same bytes. Boxes are rounded to hundredths of a pixel, scores to millionths. Run
lengths become COCO's compressed text; no mask is ever drawn here.

Knows nothing of the server; NumPy is all it needs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskx_strings import run_length_strings


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
    """The body of a good answer; `categories` maps labels to what they stand for.

    Raises:
        ValueError: run lengths that do not cover the image exactly.
    """
    areas = mask_areas(detections.rle_counts, detections.rle_offsets, height=height, width=width)
    strings = run_length_strings(detections.rle_counts, detections.rle_offsets)
    boxes = detections.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    found = []
    for label, (x, y, w, h), score, area, text in zip(
        detections.labels.tolist(),
        boxes.tolist(),
        detections.scores.tolist(),
        areas.tolist(),
        strings,
        strict=True,
    ):
        category = categories[label]
        found.append(
            {
                "category_id": category.id,
                "category": category.name,
                "bbox": [round(x, 2), round(y, 2), round(w, 2), round(h, 2)],
                "score": round(score, 6),
                "area": area,
                "mask_supervised": category.mask_supervised,
                "segmentation": {"size": [height, width], "counts": text},
            }
        )
    return _compact(
        {
            "model": {"name": model_name, "version": model_version},
            "image": {"height": height, "width": width},
            "detections": found,
        }
    )


def mask_areas(counts: np.ndarray, offsets: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Pixels of each mask, int64 [D], from run lengths as `Detections` has them.

    Raises:
        ValueError: run lengths of a mask that do not cover the image exactly.
    """
    # Of the places before i, i // 2 are odd ones and (i + 1) // 2 even ones.
    odd = np.diff(_sums(counts[1::2])[offsets // 2])
    even = np.diff(_sums(counts[::2])[(offsets + 1) // 2])
    covered = odd + even
    wrong = covered[covered != height * width]
    if len(wrong) > 0:
        raise ValueError(
            f"run lengths cover {wrong[0]} pixels of an image of {height} x {width} = {height * width}"
        )
    return np.where(offsets[:-1] % 2 == 0, odd, even)


def _sums(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ..., all values, int64."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])


def error_body(code: int, kind: str, message: str) -> bytes:
    """The body of an error: `{"error": {"code", "type", "message"}}`."""
    return _compact({"error": {"code": code, "type": kind, "message": message}})


def _compact(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")
