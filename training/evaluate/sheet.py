"""A sheet to look at: ground truth on the left, predictions on the right, set B marked (after the paper's Fig. 4)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskx_draw import draw_detections, legend_of
from model.classes import ClassTable
from training.data.coco import read_picture
from training.evaluate.precision import xywh
from training.evaluate.truth import GroundTruth

CELL = 384
"""Longer side of one picture on the sheet, in pixels."""
GAP = 8
LINE = 24


def sheet_images(truth: GroundTruth, count: int) -> list[int]:
    """Ids of up to `count` images with objects, spread evenly over the set."""
    with_objects = [image_id for image_id in truth.image_ids if truth.objects[image_id]]
    places = np.linspace(0, len(with_objects) - 1, min(count, len(with_objects))).round().astype(int)
    return [with_objects[place] for place in places]


def truth_detections(truth: GroundTruth, image_id: int, classes: ClassTable) -> list[dict[str, Any]]:
    """The ground truth of an image as detections without scores; no crowds, no objects without a mask."""
    found = []
    for one in truth.objects[image_id]:
        if one.mask is not None and not one.crowd:
            found.append(_detection(one.category_id, xywh(one.box), None, one.mask, classes))
    return found


def predicted_detections(
    results: Sequence[dict[str, Any]], image_id: int, classes: ClassTable, score_threshold: float
) -> list[dict[str, Any]]:
    """The COCO results of an image that reach the threshold, as detections."""
    return [
        _detection(r["category_id"], r["bbox"], r["score"], r["segmentation"], classes)
        for r in results
        if r["image_id"] == image_id and r["score"] >= score_threshold
    ]


def _detection(
    category_id: int, bbox: list[float], score: float | None, mask: dict[str, Any], classes: ClassTable
) -> dict[str, Any]:
    label = classes.label_of_id(category_id)
    detection = {
        "category_id": category_id,
        "category": classes.name_of_label(label),
        "bbox": bbox,
        "mask_supervised": label in classes.set_a_labels(),
        "segmentation": mask,
    }
    return detection if score is None else {**detection, "score": score}


def picture(image: Image.Image, detections: list[dict[str, Any]]) -> Image.Image:
    """An image with its detections, within a square of CELL pixels."""
    drawn = draw_detections(image, detections, min_side=CELL)
    drawn.thumbnail((CELL, CELL))
    return drawn


def write_sheet(
    path: Path,
    images_dir: Path,
    truth: GroundTruth,
    results: Sequence[dict[str, Any]],
    classes: ClassTable,
    *,
    count: int = 12,
    score_threshold: float = 0.5,
) -> None:
    """Write a PNG with `count` images, two to a row, each as ground truth beside what was predicted.

    Drawn are predictions of at least the threshold. Objects of set B, whose masks training never saw, are
    marked as everywhere (`maskx_draw`).
    """
    pairs = []
    for image_id in sheet_images(truth, count):
        height, width = truth.sizes[image_id]
        path_of_image = images_dir / truth.file_names[image_id]
        image = Image.fromarray(read_picture(path_of_image, width=width, height=height))
        left = picture(image, truth_detections(truth, image_id, classes))
        right = picture(image, predicted_detections(results, image_id, classes, score_threshold))
        pairs.append((left, right))
    title = f"ground truth | predictions of at least {score_threshold:g}          {legend_of(classes.mask_sources)}"
    compose(pairs, title).save(path)


def compose(pairs: Sequence[tuple[Image.Image, Image.Image]], title: str) -> Image.Image:
    """The grid: a title line, then two pairs to a row. Without pairs the title alone."""
    columns = 2
    rows = (len(pairs) + columns - 1) // columns
    pair_width = 2 * CELL + 2 + GAP
    sheet = Image.new("RGB", (GAP + columns * pair_width, LINE + GAP + rows * (CELL + GAP)), "white")
    ImageDraw.Draw(sheet).text((GAP, GAP // 2), title, fill="black", font=ImageFont.load_default(size=14))
    for number, (left, right) in enumerate(pairs):
        x = GAP + number % columns * pair_width
        y = LINE + GAP + number // columns * (CELL + GAP)
        sheet.paste(left, (x, y))
        sheet.paste(right, (x + CELL + 2, y))
    return sheet
