"""A small COCO set for tests; conftest.py draws its pictures and writes it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils

from model.targets import Target
from training.data.coco import CocoDataset

Document = dict[str, Any]
HEIGHT, WIDTH = 30, 40
BOX, CUP, DOG = 3, 10, 11  # category ids with holes; boxes and dogs have masks
FULL = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}


def disc() -> np.ndarray[Any, Any]:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    mask: np.ndarray[Any, Any] = (((y - 15) ** 2 + (x - 20) ** 2) < 60).astype(np.uint8)
    return mask


def disc_rle() -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(disc()))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def annotation(number: int, image: int, category: int, bbox: list[float], **more: Any) -> Document:
    x, y, w, h = bbox
    square = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0,
            "area": w * h, "segmentation": square} | more  # fmt: skip


def document() -> Document:
    """Three images: objects of all kinds, a crowd and a dog, nothing at all."""
    return {
        "images": [
            {"id": 50, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 7, "file_name": "sub/b.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 9, "file_name": "empty.png", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": DOG, "name": "dog"}, {"id": BOX, "name": "box"}, {"id": CUP, "name": "cup"}],
        "annotations": [
            annotation(1, 50, BOX, [2.5, 3.25, 10.0, 8.5]),
            annotation(2, 7, DOG, [12.0, 7.0, 17.0, 17.0], segmentation=disc_rle()),
            annotation(3, 50, CUP, [20.0, 5.0, 6.0, 6.0]),
            annotation(4, 7, BOX, [0.0, 0.0, 40.0, 30.0], iscrowd=1, segmentation=FULL),
            annotation(5, 50, BOX, [4.0, 4.0, 20.0, 20.0], segmentation=[
                [5.1, 5.2, 15.3, 5.4, 10.5, 15.6], [16.0, 16.0, 23.0, 16.0, 23.0, 23.0]]),
        ],
    }  # fmt: skip


Load = Callable[..., CocoDataset]


def assert_same(one: Target, other: Target) -> None:
    assert one["image_id"] == other["image_id"]
    for key in ("boxes", "labels", "has_mask", "crowd_boxes"):
        a, b = (target[key] for target in (one, other))  # type: ignore[literal-required]
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert [mask.tolist() for mask in one["masks"]] == [mask.tolist() for mask in other["masks"]]


def finding(dataset: CocoDataset, kind: str) -> Any:
    found = {f.kind: f for f in dataset.report.findings}
    assert kind in found, f"{kind!r} not among {sorted(found)}"
    return found[kind]
