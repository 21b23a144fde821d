"""Detections and ground truth as pycocotools wants them, and average precision sliced by class (sets A and
B, Sec. 4); that of keypoints has object keypoint similarity in the place of IoU.

The numbers over the classes of set A, of set B and over all of them are those that `COCOeval.params.catIds`
gives; they are read from one evaluation, because the precision array keeps every class apart.
"""

import contextlib
import io
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from model.classes import ClassTable
from model.keypoints.layout import KeypointsConfig, keypoint_labels
from training.data.keypoints import coco_keypoints, labelled
from training.evaluate.boundary import BoundaryEvaluation
from training.evaluate.truth import GroundObject, GroundTruth, RunLengths

MAX_DETECTIONS = 100
"""Of an image are judged, the surest ones, as in COCO."""


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """COCO's average precisions and recalls in [0, 1]; None where there is no object to find.

    `ap` is the mean over IoU .50 to .95, `ar_1` and its like the mean over the same of the share of objects found. A
    detection belongs to the size range of its box's area for boxes and of its mask's area for masks: small up to 32^2
    pixels, large from 96^2 on. Where nothing else is said, as many detections of an image as are judged count: 100, in
    LVIS 300.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar_1: float | None = None
    """By the surest detection of a class in an image; `ar_10` and `ar_100` by so many."""
    ar_10: float | None = None
    ar_100: float | None = None
    ar_small: float | None = None
    ar_medium: float | None = None
    ar_large: float | None = None
    ar: float | None = None
    """By as many as are judged: `ar_100` where those are 100, AR@300 in LVIS."""
    ap_rare: float | None = None
    """`ap` over LVIS's rare classes (in 1 to 10 images of its training set); `ap_common` over those in up to 100."""
    ap_common: float | None = None
    ap_frequent: float | None = None
    ap_by_iou: tuple[float | None, ...] = ()
    """At each IoU of IOU_THRESHOLDS, of which `ap` is the mean."""


IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
"""Overlaps from which a detection has found an object, as in COCO."""


@dataclass(frozen=True, kw_only=True)
class KeypointPrecision:
    """Over the classes with keypoints, in [0, 1], at most 20 detections an image; None where nothing is to be found.

    `ap` and `ar` are means over similarities .50 to .95. Medium objects have 32^2 to 96^2 pixels, large ones more.
    """

    objects: int
    """With at least one labelled keypoint, no crowds."""
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_medium: float | None
    ap_large: float | None
    ar: float | None = None
    """Average recall: the mean share of objects found; `ar50` and `ar75` at one similarity."""
    ar50: float | None = None
    ar75: float | None = None
    ar_medium: float | None = None
    ar_large: float | None = None


@dataclass(frozen=True)
class PrecisionTable:
    """COCOeval's arrays, -1 where nothing is to be found.

    precision: float64 [IoU threshold, recall, class, size range], at as many detections an image as are judged
    recall: float64 [IoU threshold, class, size range, detections an image (1, 10, 100, and as many as are judged where
        those are more)]
    frequencies: LVIS's "r", "c" or "f" of category ids; empty for other sets.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    category_ids: tuple[int, ...]
    frequencies: Mapping[int, str] = field(default_factory=dict)

    def over(self, category_ids: Collection[int]) -> AveragePrecision:
        """The mean over some of the classes: what COCOeval gives with params.catIds set to them."""
        columns = [k for k, category_id in enumerate(self.category_ids) if category_id in category_ids]
        precision, recall = self.precision[:, :, columns, :], self.recall[:, columns]
        kinds = np.array([self.frequencies.get(self.category_ids[k], "") for k in columns])
        return AveragePrecision(
            **_over_thresholds(precision, ("small", "medium", "large")),
            ar_1=_mean(recall[:, :, 0, 0]),
            ar_10=_mean(recall[:, :, 0, 1]),
            ar_100=_mean(recall[:, :, 0, 2]),
            ar_small=_mean(recall[:, :, 1, -1]),
            ar_medium=_mean(recall[:, :, 2, -1]),
            ar_large=_mean(recall[:, :, 3, -1]),
            ar=_mean(recall[:, :, 0, -1]),
            ap_rare=_mean(precision[:, :, kinds == "r", 0]),
            ap_common=_mean(precision[:, :, kinds == "c", 0]),
            ap_frequent=_mean(precision[:, :, kinds == "f", 0]),
            ap_by_iou=tuple(_mean(one) for one in precision[..., 0]),
        )


def _mean(precision: NDArray[np.float64]) -> float | None:
    found = precision[precision > -1]
    return float(found.mean()) if found.size else None


def _over_thresholds(
    array: NDArray[np.float64], sizes: Sequence[str], name: str = "ap"
) -> dict[str, float | None]:
    """Means of an array [threshold, ..., size range], of which the first range is all sizes."""
    means = {name: array[..., 0], f"{name}50": array[0, ..., 0], f"{name}75": array[5, ..., 0]}
    means |= {f"{name}_{size}": array[..., number] for number, size in enumerate(sizes, start=1)}
    return {one: _mean(values) for one, values in means.items()}


def masks_from_counts(rle_counts: Tensor, rle_offsets: Tensor, height: int, width: int) -> list[RunLengths]:
    """The network's run lengths (int64 [total], offsets int64 [D+1]) as D compressed masks."""
    counts, offsets = rle_counts.tolist(), rle_offsets.tolist()
    plain = [
        {"size": [height, width], "counts": counts[start:end]} for start, end in itertools.pairwise(offsets)
    ]
    return [dict(mask) for mask in mask_utils.frPyObjects(plain, height, width)] if plain else []


def filled_boxes(boxes: NDArray[np.float64], height: int, width: int) -> list[RunLengths]:
    """Every box (XYXY, [D, 4]) as the mask of all its pixels."""
    if not len(boxes):
        return []
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    return [dict(mask) for mask in mask_utils.frPyObjects(xywh, height, width)]


def xywh(box: Sequence[float]) -> list[float]:
    """A box XYXY as COCO has it."""
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def mask_iou(one: RunLengths, other: RunLengths) -> float:
    """Intersection over union of two masks of one image; 0 where both are empty."""
    iou = float(mask_utils.iou([one], [other], [0])[0, 0])
    return iou if np.isfinite(iou) else 0.0


def coco_results(
    image_id: int, output: dict[str, Tensor], size: tuple[int, int], classes: ClassTable
) -> list[dict[str, Any]]:
    """The detections of one image as COCO results: image_id, category_id, bbox [x, y, w, h], score, segmentation;
    keypoints where it has some."""
    masks = masks_from_counts(output["rle_counts"], output["rle_offsets"], *size)
    boxes, labels, scores = output["boxes"].tolist(), output["labels"].tolist(), output["scores"].tolist()
    found = [
        {
            "image_id": image_id,
            "category_id": classes.id_of_label(label),
            "bbox": xywh(box),
            "score": score,
            "segmentation": mask,
        }
        for box, label, score, mask in zip(boxes, labels, scores, masks, strict=True)
    ]
    if "keypoints" in output:
        for one, keypoints in zip(found, output["keypoints"].tolist(), strict=True):
            if any(score > 0 for _, _, score in keypoints):  # of a class that has keypoints
                one["keypoints"] = coco_keypoints(keypoints)
    return found


def box_precision(
    truth: GroundTruth,
    results: Sequence[dict[str, Any]],
    classes: ClassTable,
    *,
    max_detections: int = MAX_DETECTIONS,
) -> PrecisionTable:
    """Box average precision of COCO results (their masks are not looked at); `max_detections` of an image count."""
    annotations: list[dict[str, Any]] = []
    for image_id in truth.image_ids:
        for one in truth.objects[image_id]:
            annotations.append(_annotation(image_id, one) | {"bbox": xywh(one.box)})
    found = [{**_only(r, "bbox"), "area": r["bbox"][2] * r["bbox"][3]} for r in results]
    return _precision(truth, annotations, found, "bbox", classes, max_detections)


def mask_precision(
    truth: GroundTruth,
    results: Sequence[dict[str, Any]],
    classes: ClassTable,
    *,
    max_detections: int = MAX_DETECTIONS,
    boundary: bool = False,
) -> PrecisionTable:
    """Mask average precision of COCO results, with sizes by mask area; `max_detections` of an image count.

    With `boundary` the overlap is the lesser of mask IoU and boundary IoU (`training.evaluate.boundary`). An object
    whose mask cannot be read counts as a crowd over its box: what is found there is neither right nor wrong.
    """
    annotations: list[dict[str, Any]] = []
    for image_id in truth.image_ids:
        for one in truth.objects[image_id]:
            mask = one.mask or filled_boxes(np.array([one.box]), *truth.sizes[image_id])[0]
            record = _annotation(image_id, one) | {"segmentation": mask}
            annotations.append(record | {"iscrowd": int(one.crowd or one.mask is None)})
    # One at a time: pycocotools 2.0.11 cannot take the areas of more than 255 masks at once under numpy 2.
    areas = [mask_utils.area(r["segmentation"]) for r in results]
    found = [
        {**_only(r, "segmentation"), "area": float(area)} for r, area in zip(results, areas, strict=True)
    ]
    how = BoundaryEvaluation if boundary else COCOeval
    return _precision(truth, annotations, found, "segm", classes, max_detections, how)


def with_filled_boxes(results: Sequence[dict[str, Any]], truth: GroundTruth) -> list[dict[str, Any]]:
    """The same detections with every pixel of the box as their mask: the simplest of all baselines."""
    filled = []
    for result in results:
        x, y, w, h = result["bbox"]
        mask = filled_boxes(np.array([[x, y, x + w, y + h]]), *truth.sizes[result["image_id"]])[0]
        filled.append({**result, "segmentation": mask})
    return filled


def _annotation(image_id: int, one: GroundObject) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": one.category_id, "area": one.area, "iscrowd": int(one.crowd)}


def _only(result: dict[str, Any], shape: str) -> dict[str, Any]:
    return {key: result[key] for key in ("image_id", "category_id", "score", shape)} | {"iscrowd": 0}


def _precision(
    truth: GroundTruth,
    annotations: list[dict[str, Any]],
    found: list[dict[str, Any]],
    kind: str,
    classes: ClassTable,
    max_detections: int,
    how: type[COCOeval] = COCOeval,
) -> PrecisionTable:
    found = [result for result in found if truth.judged(result)]
    counts = [1, 10, 100, max_detections] if max_detections > 100 else [1, 10, 100]
    annotations = [*annotations, *_searched_in_part(truth)]
    evaluation = _evaluated(truth, annotations, found, kind, classes, how, maxDets=counts)
    # [IoU threshold, recall, class, size range, detections an image]: the last of these is that of the main figures.
    # A copy, for the whole of it is 300 MB with LVIS's classes.
    precision = evaluation.eval["precision"][..., -1].copy()
    return PrecisionTable(
        precision, evaluation.eval["recall"], tuple(evaluation.params.catIds), truth.frequencies
    )


def keypoint_precision(
    truth: GroundTruth, results: Sequence[dict[str, Any]], classes: ClassTable, config: KeypointsConfig
) -> KeypointPrecision:
    """Keypoint average precision of COCO results, with the sigmas of `config`.

    Objects without labelled keypoints, and crowds, are neither to be found nor wrong to be found, as in COCO.
    """
    count = len(config.all_names)
    ids = {classes.id_of_label(label) for label in keypoint_labels(config, classes)}
    annotations = [
        _keypoint_annotation(image_id, one, count)
        for image_id in truth.image_ids
        for one in truth.objects[image_id]
        if one.category_id in ids
    ]
    found = [
        _keypoint_detection(result)
        for result in results
        if result["category_id"] in ids and "keypoints" in result
    ]
    params: dict[str, Any] = {"kpt_oks_sigmas": np.array(config.all_sigmas), "catIds": sorted(ids)}
    evaluation = _evaluated(truth, annotations, found, "keypoints", classes, **params)
    objects = sum(one["num_keypoints"] > 0 and not one["iscrowd"] for one in annotations)
    precision = evaluation.eval["precision"][..., -1]  # similarity, recall, class, size range
    recall = evaluation.eval["recall"][..., -1]  # similarity, class, size range
    figures = _over_thresholds(precision, ("medium", "large")) | _over_thresholds(
        recall, ("medium", "large"), "ar"
    )
    return KeypointPrecision(objects=objects, **figures)


def _evaluated(
    truth: GroundTruth,
    annotations: list[dict[str, Any]],
    found: list[dict[str, Any]],
    kind: str,
    classes: ClassTable,
    how: type[COCOeval] = COCOeval,
    **params: Any,
) -> COCOeval:
    """pycocotools' evaluation, without what it prints: callers of this module have their own progress."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = how(indexed(truth, annotations, classes), indexed(truth, found, classes), kind)
        vars(evaluation.params).update(params)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _keypoint_annotation(image_id: int, one: GroundObject, count: int) -> dict[str, Any]:
    keypoints = list(one.keypoints) if len(one.keypoints) == 3 * count else [0] * (3 * count)
    record = _annotation(image_id, one) | {"bbox": xywh(one.box)}
    return record | {"keypoints": keypoints, "num_keypoints": labelled(keypoints)}


def _keypoint_detection(result: dict[str, Any]) -> dict[str, Any]:
    """The detection with the area that COCO gives it: of the box around its keypoints."""
    x, y = result["keypoints"][0::3], result["keypoints"][1::3]
    kept = {key: result[key] for key in ("image_id", "category_id", "score", "keypoints")}
    return kept | {"area": (max(x) - min(x)) * (max(y) - min(y)), "iscrowd": 0}


def _searched_in_part(truth: GroundTruth) -> Iterator[dict[str, Any]]:
    """A crowd over the image for every class of which not all objects are annotated: what is found beside those is
    neither right nor wrong."""
    for image_id, searched in truth.searched.items():
        height, width = truth.sizes[image_id]
        for category_id in searched.in_part:
            yield {
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [0.0, 0.0, float(width), float(height)],
                "segmentation": filled_boxes(np.array([[0.0, 0.0, width, height]]), height, width)[0],
                "area": float(height * width),
                "iscrowd": 1,
            }


def indexed(truth: GroundTruth, annotations: list[dict[str, Any]], classes: ClassTable) -> COCO:
    """A COCO object of these annotations; built by hand because `loadRes` would take a mask's size from its box."""
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": image_id, "height": truth.sizes[image_id][0], "width": truth.sizes[image_id][1]}
            for image_id in truth.image_ids
        ],
        "categories": [{"id": i, "name": name} for i, name in zip(classes.ids, classes.names, strict=True)],
        "annotations": [record | {"id": number} for number, record in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco
