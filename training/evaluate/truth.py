"""The annotations of a COCO file as evaluation needs them: exact boxes, and the masks of all classes, kept encoded."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from model.classes import ClassTable
from training.data.annotations import Annotated, AnnotationFile, is_id, read_annotations, without_collections
from training.data.findings import Finding, refuse
from training.data.keypoints import can_be_read
from training.data.masks import SegmentationError, encoded, pack_segmentation
from training.data.splits import mask_origin
from training.data.tools import Reading

RunLengths = dict[str, Any]
"""One mask as pycocotools has it: {"size": [height, width], "counts": bytes}."""

_SKIPPED = {
    "box that is not four numbers": "objects without a readable box",
    "annotation of an unknown image": "annotations of unknown images",
}
_WITHOUT_AREA = "objects without area inside their image"
_WITHOUT_MASK = "objects without a readable mask"


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
    findings: tuple[Finding, ...] = ()
    """The same in the words of the file's reader, and what else it has found."""
    searched: dict[int, Searched] = field(default_factory=dict)
    """Of the images of a federated data set; the others were searched for every class."""
    frequencies: dict[int, str] = field(default_factory=dict)
    """LVIS's "r", "c" or "f" by category id: in up to 10, up to 100, more images of its training set."""
    void: dict[int, RunLengths | None] = field(default_factory=dict)
    """Regions that no evaluation counts (Cityscapes), None where there are none; of the images that say so."""

    def judged(self, result: Mapping[str, Any]) -> bool:
        """Whether a detection counts: anyone looked whether its image has an object of its class."""
        searched = self.searched.get(result["image_id"])
        return searched is None or result["category_id"] in searched.classes

    def only(self, image_ids: Collection[int]) -> "GroundTruth":
        """The same ground truth of fewer images."""
        kept = tuple(image_id for image_id in self.image_ids if image_id in image_ids)
        return replace(
            self,
            image_ids=kept,
            file_names={image_id: self.file_names[image_id] for image_id in kept},
            sizes={image_id: self.sizes[image_id] for image_id in kept},
            objects={image_id: self.objects[image_id] for image_id in kept},
            searched={image_id: self.searched[image_id] for image_id in kept if image_id in self.searched},
            void={image_id: self.void[image_id] for image_id in kept if image_id in self.void},
        )


def load_ground_truth(
    annotations: Path,
    classes: ClassTable,
    images_dir: Path | None = None,
    *,
    document: Mapping[str, Any] | None = None,
    only_categories: Collection[int] | None = None,
    max_images: int | None = None,
    reading: Reading | None = None,
) -> GroundTruth:
    """The annotations of a COCO file, by the checks of training (`training.data.annotations`).

    What cannot be used is left out, or has no mask, and is counted. A mask outside its box is kept. An image that has
    `neg_category_ids` was searched for some classes only (LVIS).

    Args:
        classes: those of the network.
        images_dir: where images lie of which the file does not state the size.
        document: what is in the file, where it was read already (`read_annotations`).
        only_categories: objects of other classes are left out unread.
        reading: how freely the file and the names of images are taken, where `document` does not say it.
        max_images: takes that many images from the front of the list sorted by id.

    Raises:
        ValueError: see `AnnotationFile`; or no annotation can be used.
    """
    if document is None:
        document = read_annotations(annotations, reading)
    file = AnnotationFile(document, classes, source := str(annotations))
    file.take_stated_sizes(images_dir)
    document, ids = file.document, file.image_ids
    rows = sorted(range(len(ids)), key=ids.__getitem__)[:max_images]
    found: dict[int, list[GroundObject]] = {row: [] for row in rows}
    labels = None if only_categories is None else {classes.label_of_id(one) for one in only_categories}
    with without_collections():
        for one in file.annotations(images=found.keys(), labels=labels, boxes_of_b=True):
            found[one.image].append(_ground_object(one, file))
    findings = file.tally.findings()
    skipped = _skipped(findings)
    if max_images is None and skipped and not any(found.values()):
        words = "\n  ".join(str(finding) for finding in findings)
        raise ValueError(f"{source}: no object is left to be judged by\n  {words}")
    federated = any(entry.get("neg_category_ids") is not None for entry in document["images"])
    return GroundTruth(
        image_ids=tuple(ids[row] for row in rows),
        file_names={ids[row]: file.names[row] for row in rows},
        sizes={ids[row]: file.sizes[row] for row in rows},
        objects={ids[row]: tuple(objects) for row, objects in found.items()},
        skipped=skipped,
        findings=findings,
        searched={
            ids[row]: _searched(document["images"][row], objects, source)
            for row, objects in found.items()
            if document["images"][row].get("neg_category_ids") is not None
        },
        frequencies=_frequencies(document["categories"], source) if federated else {},
        void={
            ids[row]: _void(document["images"][row], file.sizes[row], source)
            for row in found
            if "void" in document["images"][row]
        },
    )


def _ground_object(one: Annotated, file: AnnotationFile) -> GroundObject:
    mask = _true_mask(one, file)
    x0, y0, x1, y1 = one.box
    area, keypoints = one.entry.get("area"), one.entry.get("keypoints") or []
    if area is not None and not (type(area) in (int, float) and 0 <= area < 1e18):
        words = f"{one.where}: area {area!r:.100}; expected a number of pixels"
        file.tally.add("area that is no number of pixels, taken from mask or box", "kept", words)
        area = None
    if area is None:
        area = (x1 - x0) * (y1 - y0) if mask is None else mask_utils.area(mask)
    if keypoints and not can_be_read(keypoints, len(keypoints) // 3 if isinstance(keypoints, list) else 0):
        words = f"{one.where}: {keypoints!r:.100}; expected x, y and visibility 0, 1 or 2 of each"
        file.tally.add("keypoints that cannot be read", "kept without its keypoints", words)
        keypoints = []
    return GroundObject(
        category_id=file.classes.id_of_label(one.label),
        box=one.box,
        mask=mask,
        area=float(area),
        crowd=bool(one.entry.get("iscrowd")),
        keypoints=tuple(keypoints),
    )


def _true_mask(one: Annotated, file: AnnotationFile) -> RunLengths | None:
    """The mask that a human made, by which alone is judged."""
    maker = mask_origin(one.entry, one.where, file.tally).maker
    if maker and one.entry.get("segmentation"):
        words = f"{one.where}: mask_source {maker!r}; expected none, as of a mask that a human made"
        file.tally.add("mask that no human made, by which is not judged", "kept without its mask", words)
        return None
    packed = file.mask(one, missing="object without a segmentation", outside_its_box=True)
    return None if packed is None else encoded(*packed, *file.sizes[one.image])


def _skipped(findings: Sequence[Finding]) -> dict[str, int]:
    """What was lost, with counts."""
    skipped: Counter[str] = Counter()
    for finding in findings:
        if finding.outcome == "left out":
            skipped[_SKIPPED.get(finding.kind, _WITHOUT_AREA)] += finding.count
        elif finding.outcome == "kept without its mask":
            skipped[_WITHOUT_MASK] += finding.count
    return dict(skipped)


def _searched(image: Mapping[str, Any], objects: Sequence[GroundObject], source: str) -> Searched:
    absent, in_part = image["neg_category_ids"], image.get("not_exhaustive_category_ids") or []
    for key, ids in (("neg_category_ids", absent), ("not_exhaustive_category_ids", in_part)):
        if not isinstance(ids, list) or not all(map(is_id, ids)):
            refuse(source, [f"image {image['id']}: {key} {ids!r:.100}; expected a list of category ids"])
    return Searched(
        classes=frozenset(absent) | {one.category_id for one in objects}, in_part=frozenset(in_part)
    )


def _frequencies(categories: Sequence[Mapping[str, Any]], source: str) -> dict[int, str]:
    """Those of a federated set's categories; none where no category says so. ValueError where one says nonsense."""
    said = {one["id"]: one["frequency"] for one in categories if one.get("frequency") is not None}
    wrong = [
        f"category {category_id}: frequency {frequency!r:.100}; expected r, c or f (rare, common, frequent)"
        for category_id, frequency in said.items()
        if frequency not in ("r", "c", "f")
    ]
    refuse(source, wrong)
    return said


def _void(image: Mapping[str, Any], size: tuple[int, int], source: str) -> RunLengths | None:
    if image["void"] is None:
        return None
    try:
        kind, data, _, _ = pack_segmentation(image["void"], *size)
    except SegmentationError as error:
        raise ValueError(f"{source}: image {image['id']}: void: {error}") from error
    return encoded(kind, data, *size)
