"""A sheet of what is trained on: boxes, the masks of set A, class names and crowd regions on their images."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from maskx_draw import legend_of
from model.targets import mask_windows
from training.data.coco import CocoDataset, read_picture
from training.evaluate.sheet import CELL, compose, picture
from training.look.facts import Facts

PICTURES = 24
CROWD = "(crowd)"


def sheet_rows(facts: Facts, count: int) -> list[int]:
    """Up to `count` images, ascending: for half of them the rarest classes, else spread evenly over those with objects.

    One has a crowd region, where there is any.
    """
    packed = facts.packed
    rows = np.repeat(np.arange(len(packed.image_ids)), np.diff(packed.object_starts))
    chosen: list[int] = []

    def take(candidates: np.ndarray[Any, Any]) -> None:
        """The one farthest from those that are chosen."""
        left = np.setdiff1d(candidates, chosen)
        if len(left) and len(chosen) < count:
            far = [min((abs(row - other) for other in chosen), default=0) for row in left]
            chosen.append(int(left[int(np.argmax(far))]))

    present = [at for at in np.argsort(facts.objects, kind="stable").tolist() if facts.objects[at]]
    for at in present[: count // 2]:
        take(rows[packed.labels == at + 1])
    take(np.flatnonzero(np.diff(packed.crowd_starts)))
    with_objects = np.setdiff1d(rows, chosen)
    free = min(count - len(chosen), len(with_objects))
    places = np.linspace(0, len(with_objects) - 1, free).round().astype(int)
    return sorted({*chosen, *with_objects[places].tolist()})


def detections(data: CocoDataset, row: int) -> list[dict[str, Any]]:
    """The target of an image as it is trained on, in the form that is drawn."""
    target, (height, width) = data.target(row), data.size(row)
    windows = mask_windows(target["boxes"], height, width).tolist()
    found = []
    for box, label, mask, window in zip(
        target["boxes"].tolist(), target["labels"].tolist(), target["masks"], windows, strict=True
    ):
        one = {
            "category_id": data.classes.id_of_label(label),
            "category": data.classes.name_of_label(label),
            "bbox": _xywh(box),
            "mask_supervised": data.classes.has_mask[label - 1],
        }
        if mask.numel():
            whole = np.zeros((height, width), np.uint8, order="F")
            whole[window[1] : window[3], window[0] : window[2]] = mask.numpy()
            one["segmentation"] = mask_utils.encode(whole)
        found.append(one)
    for box in target["crowd_boxes"].tolist():
        found.append({"category_id": 0, "category": CROWD, "bbox": _xywh(box), "mask_supervised": True})
    return found


def _xywh(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def write_sheet(path: Path, data: CocoDataset, count: int = PICTURES) -> int:
    """Write a PNG of up to `count` images, four to a row; how many there are. ValueError where one does not decode."""
    rows = sheet_rows(Facts.of(data, "training set"), count)
    drawn = []
    for row in rows:
        height, width = data.size(row)
        image = Image.fromarray(read_picture(data.path(row), width=width, height=height))
        drawn.append(picture(image, detections(data, row)))
    if len(drawn) % 2:
        drawn.append(Image.new("RGB", (CELL, CELL), "white"))
    title = f"as trained on: {len(rows)} of {len(data)} images"
    if not all(data.classes.has_mask):
        title += f"          {legend_of(data.classes.mask_sources)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    compose(list(zip(drawn[0::2], drawn[1::2], strict=True)), title).save(path, "PNG")
    return len(rows)
