"""How well a network detects and segments: average precision over sets A, B and all classes (Sec. 4), and
mask quality alone. The masks of set B are read here, and nowhere in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.classes import ClassTable
from model.dataclass_io import to_plain
from model.keypoints.layout import KeypointsConfig
from training.evaluate.cityscapes import CityscapesPrecision, CityscapesTable, cityscapes_precision
from training.evaluate.precision import (
    MAX_DETECTIONS,
    AveragePrecision,
    KeypointPrecision,
    PrecisionTable,
    box_precision,
    keypoint_precision,
    mask_precision,
    with_filled_boxes,
)
from training.evaluate.predictions import SCORE_THRESHOLD, Evaluable, Predictions, predict
from training.evaluate.truth import GroundTruth, load_ground_truth


@dataclass(frozen=True, kw_only=True)
class GroupResults:
    """Figures over a group of classes, in [0, 1]; None where there is nothing to measure."""

    classes: int
    objects: int
    box: AveragePrecision
    mask: AveragePrecision
    filled_box: AveragePrecision
    """Mask AP of the same detections, each with every pixel of its box as the mask."""
    mask_iou: float | None
    """Mean over objects (no crowds) of the IoU of the mask predicted on the ground-truth box and label."""
    box_fill: float | None
    """The same for the filled ground-truth box."""
    boundary: AveragePrecision | None = None
    """Of masks by boundary IoU; None where that was not asked for, as below."""
    cityscapes: CityscapesPrecision | None = None


@dataclass(frozen=True, kw_only=True)
class ClassResults:
    """Figures of one class."""

    category_id: int
    name: str
    mask_supervised: bool
    mask_source: str
    """What its masks were learned from (`model.classes.MASK_SOURCES`)."""
    objects: int
    box_ap: float | None
    box_ap50: float | None
    mask_ap: float | None
    mask_ap50: float | None
    mask_iou: float | None
    box_fill: float | None
    box: AveragePrecision
    """All figures of the class, of which four stand above as well."""
    mask: AveragePrecision
    boundary: AveragePrecision | None = None
    cityscapes: CityscapesPrecision | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """The outcome of one evaluation."""

    images: int
    score_threshold: float
    skipped: dict[str, int]
    a: GroupResults
    b: GroupResults
    all: GroupResults
    classes: tuple[ClassResults, ...]
    keypoints: KeypointPrecision | None = None
    """None where keypoints were not judged."""
    max_detections: int = MAX_DETECTIONS
    """Of an image, at most."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = to_plain(self)
        return plain


def evaluate_network(
    network: Evaluable,
    classes: ClassTable,
    images_dir: Path,
    annotations: Path,
    *,
    device: torch.device | str = "cpu",
) -> Results:
    """Evaluate `network`, which lies on `device`, on a COCO set; `classes` says which classes count as set A and B.

    Raises ValueError where the annotations cannot be used (see `load_ground_truth`) or no image can be read.
    """
    truth = load_ground_truth(annotations, classes, images_dir)
    return judge(predict(network, classes, images_dir, truth, device=device), classes)


def judge(
    predictions: Predictions,
    classes: ClassTable,
    *,
    score_threshold: float = SCORE_THRESHOLD,
    keypoints: KeypointsConfig | None = None,
    boundary: bool = False,
    cityscapes: bool = False,
) -> Results:
    """Average precisions and mean IoU of predictions, over set A, set B and all classes of `classes`; that of
    keypoints where `keypoints` says which there are; boundary AP and Cityscapes' own where asked for.

    Raises ValueError where these have not what they need (`require_boundary`, `require_void`)."""
    truth = predictions.truth
    most = predictions.max_detections
    boxes = box_precision(truth, predictions.results, classes, max_detections=most)
    masks = mask_precision(truth, predictions.results, classes, max_detections=most)
    in_boxes = with_filled_boxes(predictions.results, truth)
    filled = mask_precision(truth, in_boxes, classes, max_detections=most)
    outlines = (
        mask_precision(truth, predictions.results, classes, max_detections=most, boundary=True)
        if boundary
        else None
    )
    streets = cityscapes_precision(truth, predictions.results, classes) if cityscapes else None
    in_a = {classes.id_of_label(label) for label in classes.set_a_labels()}
    in_b = {classes.id_of_label(label) for label in classes.set_b_labels()}

    def group(category_ids: set[int]) -> GroupResults:
        mine = [one for one in predictions.object_masks if one.category_id in category_ids]
        return GroupResults(
            classes=len(category_ids),
            objects=_objects(truth, category_ids),
            box=boxes.over(category_ids),
            mask=masks.over(category_ids),
            filled_box=filled.over(category_ids),
            mask_iou=_mean([one.iou for one in mine]),
            box_fill=_mean([one.box_fill for one in mine]),
            boundary=None if outlines is None else outlines.over(category_ids),
            cityscapes=None if streets is None else streets.over(category_ids),
        )

    return Results(
        images=len(truth.image_ids),
        score_threshold=score_threshold,
        skipped=truth.skipped,
        a=group(in_a),
        b=group(in_b),
        all=group(in_a | in_b),
        classes=_per_class(predictions, classes, boxes, masks, outlines, streets),
        keypoints=keypoint_precision(truth, predictions.results, classes, keypoints)
        if keypoints is not None and keypoints.used
        else None,
        max_detections=most,
    )


def _per_class(
    predictions: Predictions,
    classes: ClassTable,
    boxes: PrecisionTable,
    masks: PrecisionTable,
    outlines: PrecisionTable | None,
    streets: CityscapesTable | None,
) -> tuple[ClassResults, ...]:
    rows = []
    for category_id, name, source in zip(classes.ids, classes.names, classes.mask_sources, strict=True):
        box, mask = boxes.over({category_id}), masks.over({category_id})
        mine = [one for one in predictions.object_masks if one.category_id == category_id]
        rows.append(
            ClassResults(
                category_id=category_id,
                name=name,
                mask_supervised=source == "masks",
                mask_source=source,
                objects=_objects(predictions.truth, {category_id}),
                box_ap=box.ap,
                box_ap50=box.ap50,
                mask_ap=mask.ap,
                mask_ap50=mask.ap50,
                mask_iou=_mean([one.iou for one in mine]),
                box_fill=_mean([one.box_fill for one in mine]),
                box=box,
                mask=mask,
                boundary=None if outlines is None else outlines.over({category_id}),
                cityscapes=None if streets is None else streets.over({category_id}),
            )
        )
    return tuple(rows)


def _objects(truth: GroundTruth, category_ids: set[int]) -> int:
    return sum(
        not one.crowd and one.category_id in category_ids for found in truth.objects.values() for one in found
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
