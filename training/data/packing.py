"""The objects of a COCO set, checked one by one and packed into a few arrays; masks of set A only (Sec. 3.1).

Single annotations that cannot be used are left out or lose their mask, counted by kind; where nothing is
left, that is an error, and so are ids that are missing, repeated or of an unknown category.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.classes import ClassTable
from model.keypoints.layout import KeypointsConfig
from training.data.annotations import (
    Progress,
    Report,
    Tally,
    check_categories,
    check_image_entries,
    check_image_files,
    is_id,
    refuse,
)
from training.data.keypoints import KeypointRows, PackedKeypoints
from training.data.masks import NO_MASK, SegmentationError, pack_segmentation

_GRID = 256.0
_FARTHEST = 1e9
"""Coordinates beyond this many pixels are no numbers meant for a picture (and may not fit a float)."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class PackedAnnotations:
    """All annotations of n images in a few arrays: small, and shared with forked loader workers.

    Objects of image i are rows object_starts[i]:object_starts[i+1]; crowd boxes likewise.
    """

    image_ids: NDArray[np.int64]  # [n]
    sizes: NDArray[np.int32]  # [n, 2] (height, width) of the picture as annotated
    file_names: NDArray[np.bytes_]  # [n] UTF-8, below the folder of images
    object_starts: NDArray[np.int64]  # [n + 1]
    boxes: NDArray[np.float32]  # [k, 4] XYXY pixels inside the image, on a grid of 1/256 pixel
    labels: NDArray[np.int64]  # [k] 1..C
    mask_kinds: NDArray[np.uint8]  # [k] segmentations.NO_MASK where there is none
    mask_starts: NDArray[np.int64]  # [k] into mask_data
    mask_ends: NDArray[np.int64]  # [k]
    mask_data: NDArray[np.uint8]
    crowd_starts: NDArray[np.int64]  # [n + 1]
    crowd_boxes: NDArray[np.float32]  # [m, 4]
    keypoints: PackedKeypoints | None = None


def pack_annotations(
    document: Mapping[str, Any],
    classes: ClassTable,
    images_dir: Path,
    *,
    source: str,
    require_masks: bool = True,
    keypoints: KeypointsConfig | None = None,
    progress: Progress | None = None,
) -> tuple[PackedAnnotations, Report]:
    """Check a parsed annotation file and its images, and pack what can be used.

    The segmentation of an object is looked at only where its class is in set A of `classes`; those of set B
    and of crowd regions are not even taken out of their annotations. `source` names the file in messages.
    Raises ValueError as the heads of this file and of coco_checks say; a set without a mask is one only
    while `require_masks`, and one without a keypoint where `keypoints` says which objects have.
    """
    check_categories(document["categories"], classes, source)
    names, image_ids, stated = check_image_entries(document["images"], source)
    tally = Tally()
    sizes = check_image_files(names, stated, images_dir, tally, source, progress)
    rows = _Rows(image_ids=image_ids, names=names, sizes=sizes, classes=classes, tally=tally)
    if keypoints is not None and keypoints.used:
        rows.keypoints = KeypointRows(keypoints, classes, document["categories"], source)
    collecting = gc.isenabled()
    gc.disable()
    try:
        rows.add_all(document["annotations"], source)
    finally:
        if collecting:
            gc.enable()
    packed = rows.packed()
    report = Report(
        source=source,
        images=len(names),
        images_without_objects=int((np.diff(packed.object_starts) == 0).sum()),
        objects=len(packed.labels),
        objects_with_mask=int((packed.mask_kinds != NO_MASK).sum()),
        crowd_regions=len(packed.crowd_boxes),
        objects_with_keypoints=None if packed.keypoints is None else len(packed.keypoints.values),
        findings=tally.findings(),
    )
    if not report.objects:
        raise ValueError(f"no object is left to learn from.\n{report}")
    if require_masks and not report.objects_with_mask:
        wanted = ", ".join(classes.name_of_label(label) for label in classes.set_a_labels()[:8])
        raise ValueError(f"no object of a class with masks ({wanted}) has a mask that can be used.\n{report}")
    if report.objects_with_keypoints == 0:
        raise ValueError(f"no object has a keypoint, and model.keypoints asks for some.\n{report}")
    return packed, report


@dataclass(kw_only=True)
class _Rows:
    """Annotations on their way into arrays."""

    image_ids: list[int]
    names: list[str]
    sizes: list[tuple[int, int]]
    classes: ClassTable
    tally: Tally
    object_images: list[int] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    mask_kinds: bytearray = field(default_factory=bytearray)
    mask_ends: list[int] = field(default_factory=list)
    mask_data: bytearray = field(default_factory=bytearray)
    crowd_images: list[int] = field(default_factory=list)
    crowd_boxes: list[Box] = field(default_factory=list)
    keypoints: KeypointRows | None = None

    def add_all(self, annotations: Sequence[Any], source: str) -> None:
        """Take in every annotation; ValueError: ids missing, repeated or of an unknown category."""
        position = {image_id: row for row, image_id in enumerate(self.image_ids)}
        labels = {category_id: label for label, category_id in enumerate(self.classes.ids, start=1)}
        seen: set[int] = set()
        problems = []
        for number, annotation in enumerate(annotations, start=1):
            if not isinstance(annotation, Mapping) or not is_id(annotation.get("id")):
                problems.append(f"annotation number {number} has no whole number 'id'")
                continue
            annotation_id = annotation["id"]
            image = position.get(_key(annotation.get("image_id")))
            where = f"annotation {annotation_id}" + ("" if image is None else f" of {self.names[image]}")
            label = labels.get(_key(annotation.get("category_id")))
            if annotation_id in seen:
                problems.append(f"{where}: a second annotation of this id; expected each id once")
            elif label is None:
                problems.append(
                    f"{where}: category_id {annotation.get('category_id')!r}; expected that of a category"
                )
            elif image is None:
                words = f"{where}: image_id {annotation.get('image_id')!r}; expected that of an image"
                self.tally.add("annotation of an unknown image", "left out", words)
            else:
                self._add(annotation, image, label, where)
            seen.add(annotation_id)
        refuse(source, problems)

    def _add(self, annotation: Mapping[str, Any], image: int, label: int, where: str) -> None:
        height, width = self.sizes[image]
        box = self._box(annotation.get("bbox"), height, width, where)
        if box is None:
            return
        if annotation.get("iscrowd"):
            self.crowd_images.append(image)
            self.crowd_boxes.append(box)
            return
        kind = NO_MASK
        if self.classes.has_mask[label - 1]:  # set B: the segmentation is not even looked at
            kind = self._pack_mask(annotation.get("segmentation"), box, height, width, where)
        if self.keypoints is not None:
            self.keypoints.add(annotation, label, len(self.object_images), where, self.tally)
        self.object_images.append(image)
        self.boxes.append(box)
        self.labels.append(label)
        self.mask_kinds.append(kind)
        self.mask_ends.append(len(self.mask_data))

    def _box(self, bbox: Any, height: int, width: int, where: str) -> Box | None:
        """XYXY cut to the image, from COCO's [x, y, width, height]; None where nothing is left of it.

        Rounded to 1/256 pixel, on which grid float32 mirrors a box without error (at sides of at most 16
        384).
        """
        if not _is_four_numbers(bbox):
            words = f"{where}: bbox {bbox!r:.100}; expected [x, y, width, height] in numbers"
            self.tally.add("box that is not four numbers", "left out", words)
            return None
        x, y, w, h = bbox
        if w <= 0 or h <= 0:
            self.tally.add(
                "box of no area", "left out", f"{where}: bbox {bbox}; expected width and height above 0"
            )
            return None
        x0, y0 = (round(max(v, 0.0) * _GRID) / _GRID for v in (x, y))
        x1, y1 = (round(min(end, side) * _GRID) / _GRID for end, side in ((x + w, width), (y + h, height)))
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            self.tally.add(
                "box outside the image", "left out", f"{where}: bbox {bbox}; the image is {width} x {height}"
            )
            return None
        if x1 <= x0 or y1 <= y0:
            self.tally.add(
                "box of no area", "left out", f"{where}: bbox {bbox}; expected more than 1/256 of a pixel"
            )
            return None
        if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
            words = f"{where}: bbox {bbox}; the image is {width} x {height}"
            self.tally.add("box that reaches out of the image, cut to it", "kept", words)
        return x0, y0, x1, y1

    def _pack_mask(self, segmentation: Any, box: Box, height: int, width: int, where: str) -> int:
        """Append a mask's packed form and return its kind; NO_MASK, counted, where it cannot be used."""
        if segmentation is None or segmentation == []:
            self.tally.add(
                "class with masks, but no segmentation",
                "kept without its mask",
                f"{where}: expected polygons or an RLE",
            )
            return NO_MASK
        try:
            kind, data, extent, dropped = pack_segmentation(segmentation, height, width)
            if extent[0] >= box[2] or extent[1] >= box[3] or extent[2] <= box[0] or extent[3] <= box[1]:
                message = f"a mask from {extent[:2]} to {extent[2:]}; expected it inside its box {box}"
                raise SegmentationError("segmentation outside its box", message)
        except SegmentationError as error:
            self.tally.add(error.kind, "kept without its mask", f"{where}: {error}")
            return NO_MASK
        if dropped:
            words = f"{where}: {dropped} of {len(segmentation)} polygons; expected at least 3 points in each"
            self.tally.add("mask with some polygons of fewer than 3 points, which are dropped", "kept", words)
        self.mask_data += data
        return kind

    def packed(self) -> PackedAnnotations:
        """Everything in the order of images; within an image in the order of the file."""
        n = len(self.image_ids)
        object_images = np.array(self.object_images, dtype=np.int64)
        order = np.argsort(object_images, kind="stable")
        crowd_images = np.array(self.crowd_images, dtype=np.int64)
        crowd_order = np.argsort(crowd_images, kind="stable")
        ends = np.array(self.mask_ends, dtype=np.int64)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if len(ends) else ends
        return PackedAnnotations(
            image_ids=np.array(self.image_ids, dtype=np.int64),
            sizes=np.array(self.sizes, dtype=np.int32).reshape(n, 2),
            file_names=np.array([os.fsencode(name) for name in self.names]),
            object_starts=np.searchsorted(object_images[order], np.arange(n + 1)),
            boxes=np.array(self.boxes, dtype=np.float32).reshape(-1, 4)[order],
            labels=np.array(self.labels, dtype=np.int64)[order],
            mask_kinds=np.frombuffer(bytes(self.mask_kinds), dtype=np.uint8)[order],
            mask_starts=starts[order],
            mask_ends=ends[order],
            mask_data=np.frombuffer(self.mask_data, dtype=np.uint8),
            crowd_starts=np.searchsorted(crowd_images[crowd_order], np.arange(n + 1)),
            crowd_boxes=np.array(self.crowd_boxes, dtype=np.float32).reshape(-1, 4)[crowd_order],
            keypoints=None if self.keypoints is None else self.keypoints.packed(order),
        )


def _key(value: Any) -> Any:
    """An id to look up; None for what is no id (a list could not be hashed, and True would be 1)."""
    return value if is_id(value) else None


def _is_four_numbers(bbox: Any) -> bool:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return False
    return all(type(v) in (int, float) and -_FARTHEST < v < _FARTHEST for v in bbox)
