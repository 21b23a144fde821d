"""Detections and ground truth as pycocotools wants them, and average precision sliced by class (sets A and
B, Sec. 4).

The numbers over the classes of set A, of set B and over all of them are those that `COCOeval.params.catIds`
gives; they are read from one evaluation, because the precision array keeps every class apart.
"""

import contextlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from model.classes import ClassTable
from training.data.keypoints import coco_keypoints

RunLengths = dict[str, Any]
"""One mask as pycocotools has it: {"size": [height, width], "counts": bytes}."""

SIZE_RANGES = ("all", "small", "medium", "large")


@dataclass(frozen=True, kw_only=True)
class GroundObject:
    """One annotated object: box XYXY in pixels and clipped to the image; mask None where none can be read.

    `area`, by which COCO sorts objects into size ranges, is the annotation's own; where it has none, that
    of the mask, else of the box.
    """

    category_id: int
    box: tuple[float, float, float, float]
    mask: RunLengths | None
    area: float
    crowd: bool
    keypoints: tuple[float, ...] = ()
    """x, y and visibility of each, as COCO has them; empty where there are none."""


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The classes an image of a federated data set was searched for (LVIS, Gupta et al., 2019)."""

    classes: frozenset[int]
    """Category ids: those of its objects, and those of which it has none (`neg_category_ids`)."""
    in_part: frozenset[int]
    """Category ids of which not every object is annotated (`not_exhaustive_category_ids`)."""


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """The annotations of a set of images, masks of set B included: only evaluation may read those."""

    image_ids: tuple[int, ...]
    file_names: dict[int, str]
    sizes: dict[int, tuple[int, int]]
    """(height, width) as the annotation file states them."""
    objects: dict[int, tuple[GroundObject, ...]]
    skipped: dict[str, int]
    """What could not be used, with counts."""
    searched: dict[int, Searched] = field(default_factory=dict)
    """Of the images of a federated data set; the others were searched for every class."""

    def judged(self, result: Mapping[str, Any]) -> bool:
        """Whether a detection counts: anyone looked whether its image has an object of its class."""
        searched = self.searched.get(result["image_id"])
        return searched is None or result["category_id"] in searched.classes

    def only(self, image_ids: Collection[int]) -> "GroundTruth":
        """The same ground truth of fewer images."""
        kept = tuple(image_id for image_id in self.image_ids if image_id in image_ids)
        return GroundTruth(
            image_ids=kept,
            file_names={image_id: self.file_names[image_id] for image_id in kept},
            sizes={image_id: self.sizes[image_id] for image_id in kept},
            objects={image_id: self.objects[image_id] for image_id in kept},
            skipped=self.skipped,
            searched={image_id: self.searched[image_id] for image_id in kept if image_id in self.searched},
        )


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """COCO's average precisions in [0, 1] at 100 detections an image; None where there is no object to
    find.

    `ap` is the mean over IoU .50 to .95. A detection belongs to the size range of its box's area for boxes
    and of its mask's area for masks.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None


@dataclass(frozen=True)
class PrecisionTable:
    """COCOeval's precision array, float64 [IoU threshold, recall, class, size range], -1 where nothing is
    to be found.
    """

    precision: NDArray[np.float64]
    category_ids: tuple[int, ...]

    def over(self, category_ids: Collection[int]) -> AveragePrecision:
        """The mean over some of the classes: what COCOeval gives with params.catIds set to them."""
        columns = [k for k, category_id in enumerate(self.category_ids) if category_id in category_ids]
        chosen = self.precision[:, :, columns, :]
        return AveragePrecision(
            ap=_mean(chosen[:, :, :, 0]),
            ap50=_mean(chosen[0, :, :, 0]),
            ap75=_mean(chosen[5, :, :, 0]),
            ap_small=_mean(chosen[:, :, :, 1]),
            ap_medium=_mean(chosen[:, :, :, 2]),
            ap_large=_mean(chosen[:, :, :, 3]),
        )


def _mean(precision: NDArray[np.float64]) -> float | None:
    found = precision[precision > -1]
    return float(found.mean()) if found.size else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """pycocotools prints its progress; callers of this module have their own."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def load_ground_truth(
    annotations: Path,
    classes: ClassTable,
    *,
    only_categories: Collection[int] | None = None,
    max_images: int | None = None,
) -> GroundTruth:
    """Read a COCO annotation file for evaluation.

    Objects without area or wholly outside their image are left out, and a mask that cannot be read is None;
    both are counted in `skipped`. An image that has `neg_category_ids` was searched for some classes only (LVIS).
    With `only_categories`, objects of other classes are left out unread.
    `max_images` takes that many images from the front of the list sorted by id.

    Raises ValueError where the file is no COCO file, where its classes are not those of `classes`, and
    where no image is left.
    """
    try:
        with _quiet():
            coco = COCO(str(annotations))
        categories = {int(category["id"]): str(category["name"]) for category in coco.dataset["categories"]}
        image_ids = sorted(int(image_id) for image_id in coco.imgs)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{annotations} cannot be read as COCO annotations ({type(error).__name__}: {error}); expected a JSON file "
            'with "images", "annotations" and "categories"'
        ) from error
    if not image_ids:
        raise ValueError(f"{annotations} lists no image; evaluation needs at least one")
    known = dict(zip(classes.ids, classes.names, strict=True))
    for category_id, name in categories.items():
        if known.get(category_id) != name and (category_id in known or coco.catToImgs[category_id]):
            raise ValueError(
                f"{annotations}: category {category_id} is {name!r}, but the network was trained with "
                f"{known.get(category_id, 'no such class')!r} there; evaluate with the categories it was trained with"
            )

    image_ids = image_ids[:max_images]
    skipped: Counter[str] = Counter()
    objects: dict[int, tuple[GroundObject, ...]] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for image_id in image_ids:
        record = coco.imgs[image_id]
        sizes[image_id] = (int(record["height"]), int(record["width"]))
        found = []
        for annotation in coco.imgToAnns.get(image_id, []):
            if only_categories is None or annotation["category_id"] in only_categories:
                found.append(_ground_object(annotation, *sizes[image_id], skipped))
        objects[image_id] = tuple(one for one in found if one is not None)
    return GroundTruth(
        image_ids=tuple(image_ids),
        file_names={image_id: str(coco.imgs[image_id]["file_name"]) for image_id in image_ids},
        sizes=sizes,
        objects=objects,
        skipped=dict(skipped),
        searched={
            image_id: _searched(record, objects[image_id])
            for image_id in image_ids
            if (record := coco.imgs[image_id]).get("neg_category_ids") is not None
        },
    )


def _searched(image: Mapping[str, Any], objects: Sequence[GroundObject]) -> Searched:
    return Searched(
        classes=frozenset(image["neg_category_ids"]) | {one.category_id for one in objects},
        in_part=frozenset(image.get("not_exhaustive_category_ids") or ()),
    )


def _ground_object(
    annotation: dict[str, Any], height: int, width: int, skipped: Counter[str]
) -> GroundObject | None:
    x, y, w, h = (float(value) for value in annotation["bbox"])
    box = (max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height)))
    if not (box[2] > box[0] and box[3] > box[1]):
        skipped["objects without area inside their image"] += 1
        return None
    mask = _read_mask(annotation.get("segmentation"), height, width)
    if mask is None:
        skipped["objects without a readable mask"] += 1
    area = annotation.get("area")
    if area is None:
        area = (box[2] - box[0]) * (box[3] - box[1]) if mask is None else mask_utils.area(mask)
    return GroundObject(
        category_id=int(annotation["category_id"]),
        box=box,
        mask=mask,
        area=float(area),
        crowd=bool(annotation.get("iscrowd", 0)),
        keypoints=tuple(annotation.get("keypoints") or ()),
    )


def _read_mask(segmentation: Any, height: int, width: int) -> RunLengths | None:
    """A segmentation (polygons, run lengths compressed or not) as run lengths; None where it is none or
    does not fit.
    """
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if list(segmentation.get("size", ())) != [height, width]:
            return None
        if isinstance(counts, str | bytes):
            return {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}
        if not isinstance(counts, list) or sum(counts) != height * width:
            return None
        return one_mask(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    if not all(
        isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation
    ):
        return None
    return dict(mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width)))


def one_mask(uncompressed: RunLengths, height: int, width: int) -> RunLengths:
    """Run lengths given as a list of counts, in pycocotools' compressed form."""
    return dict(mask_utils.frPyObjects(uncompressed, height, width))


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


def mask_iou(one: RunLengths, other: RunLengths) -> float:
    """Intersection over union of two masks of one image; 0 where both are empty."""
    iou = float(mask_utils.iou([one], [other], [0])[0, 0])
    return iou if np.isfinite(iou) else 0.0


def coco_results(
    image_id: int, output: dict[str, Tensor], size: tuple[int, int], classes: ClassTable
) -> list[dict[str, Any]]:
    """The detections of one image as COCO results: image_id, category_id, bbox [x, y, w, h], score,
    segmentation; keypoints where it has some.
    """
    masks = masks_from_counts(output["rle_counts"], output["rle_offsets"], *size)
    boxes, labels, scores = output["boxes"].tolist(), output["labels"].tolist(), output["scores"].tolist()
    found = [
        {
            "image_id": image_id,
            "category_id": classes.id_of_label(label),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
            "segmentation": mask,
        }
        for (x0, y0, x1, y1), label, score, mask in zip(boxes, labels, scores, masks, strict=True)
    ]
    if "keypoints" in output:
        for one, keypoints in zip(found, output["keypoints"].tolist(), strict=True):
            if any(score > 0 for _, _, score in keypoints):  # of a class that has keypoints
                one["keypoints"] = coco_keypoints(keypoints)
    return found


def box_precision(
    truth: GroundTruth, results: Sequence[dict[str, Any]], classes: ClassTable
) -> PrecisionTable:
    """Box average precision of COCO results (their masks are not looked at)."""
    annotations: list[dict[str, Any]] = []
    for image_id in truth.image_ids:
        for one in truth.objects[image_id]:
            bbox = [one.box[0], one.box[1], one.box[2] - one.box[0], one.box[3] - one.box[1]]
            annotations.append(_annotation(image_id, one) | {"bbox": bbox})
    found = [{**_only(r, "bbox"), "area": r["bbox"][2] * r["bbox"][3]} for r in results]
    return _precision(truth, annotations, found, "bbox", classes)


def mask_precision(
    truth: GroundTruth, results: Sequence[dict[str, Any]], classes: ClassTable
) -> PrecisionTable:
    """Mask average precision of COCO results, with sizes by mask area.

    An object whose mask cannot be read counts as a crowd over its box: what is found there is neither right
    nor wrong.
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
    return _precision(truth, annotations, found, "segm", classes)


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
) -> PrecisionTable:
    found = [result for result in found if truth.judged(result)]
    annotations = [*annotations, *_searched_in_part(truth)]
    with _quiet():
        evaluation = COCOeval(indexed(truth, annotations, classes), indexed(truth, found, classes), kind)
        evaluation.evaluate()
        evaluation.accumulate()
    # [IoU threshold, recall, class, size range, detections an image]: the last is the 100 of COCO's main figures.
    return PrecisionTable(evaluation.eval["precision"][..., -1], tuple(evaluation.params.catIds))


def _searched_in_part(truth: GroundTruth) -> Iterator[dict[str, Any]]:
    """A crowd over the image for every class of which not all objects are annotated: what is found beside those is
    neither right nor wrong.
    """
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
    """A COCO object of these annotations; built by hand because `loadRes` would take a mask's size from its
    box.
    """
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
