"""COCO's keypoint average precision: object keypoint similarity in the place of IoU (pycocotools)."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from model.classes import ClassTable
from model.keypoints.layout import KeypointsConfig, keypoint_labels
from training.data.keypoints import labelled
from training.evaluate.precision import GroundObject, GroundTruth, indexed


@dataclass(frozen=True, kw_only=True)
class KeypointPrecision:
    """Over the classes with keypoints, in [0, 1], at most 20 detections an image; None where nothing is to be found.

    `ap` is the mean over similarities .50 to .95. Medium objects have 32^2 to 96^2 pixels, large ones more.
    """

    objects: int
    """With at least one labelled keypoint, no crowds."""
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_medium: float | None
    ap_large: float | None


def keypoint_precision(
    truth: GroundTruth, results: Sequence[dict[str, Any]], classes: ClassTable, config: KeypointsConfig
) -> KeypointPrecision:
    """Keypoint average precision of COCO results, with the sigmas of `config`.

    Objects without labelled keypoints, and crowds, are neither to be found nor wrong to be found, as in COCO.
    """
    count = len(config.all_names)
    ids = {classes.id_of_label(label) for label in keypoint_labels(config, classes)}
    annotations = [
        _annotation(image_id, one, count)
        for image_id in truth.image_ids
        for one in truth.objects[image_id]
        if one.category_id in ids
    ]
    found = [
        _detection(result) for result in results if result["category_id"] in ids and "keypoints" in result
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            indexed(truth, annotations, classes), indexed(truth, found, classes), "keypoints"
        )
        evaluation.params.kpt_oks_sigmas = np.array(config.all_sigmas)
        evaluation.params.catIds = sorted(ids)
        evaluation.evaluate()
        evaluation.accumulate()
    precision: NDArray[np.float64] = evaluation.eval["precision"][
        ..., -1
    ]  # similarity, recall, class, size range
    return KeypointPrecision(
        objects=sum(one["num_keypoints"] > 0 and not one["iscrowd"] for one in annotations),
        ap=_mean(precision[:, :, :, 0]),
        ap50=_mean(precision[0, :, :, 0]),
        ap75=_mean(precision[5, :, :, 0]),
        ap_medium=_mean(precision[:, :, :, 1]),
        ap_large=_mean(precision[:, :, :, 2]),
    )


def _annotation(image_id: int, one: GroundObject, count: int) -> dict[str, Any]:
    keypoints = list(one.keypoints) if len(one.keypoints) == 3 * count else [0] * (3 * count)
    return {
        "image_id": image_id,
        "category_id": one.category_id,
        "bbox": [one.box[0], one.box[1], one.box[2] - one.box[0], one.box[3] - one.box[1]],
        "area": one.area,
        "iscrowd": int(one.crowd),
        "keypoints": keypoints,
        "num_keypoints": labelled(keypoints),
    }


def _detection(result: dict[str, Any]) -> dict[str, Any]:
    """The detection with the area that COCO gives it: of the box around its keypoints."""
    x, y = result["keypoints"][0::3], result["keypoints"][1::3]
    kept = {key: result[key] for key in ("image_id", "category_id", "score", "keypoints")}
    return kept | {"area": (max(x) - min(x)) * (max(y) - min(y)), "iscrowd": 0}


def _mean(precision: NDArray[np.float64]) -> float | None:
    found = precision[precision > -1]
    return float(found.mean()) if found.size else None
