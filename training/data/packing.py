"""The objects of a COCO set, packed into a few arrays; masks of set A (Sec. 3.1), and those that are taught."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.classes import ClassTable
from model.keypoints.layout import KeypointsConfig
from training.data.annotations import Annotated, AnnotationFile, Box, without_collections
from training.data.findings import Report
from training.data.image_files import Progress
from training.data.keypoints import KeypointRows, PackedKeypoints
from training.data.masks import NO_MASK
from training.data.splits import MaskOrigin, mask_origin

_GRID = 256.0


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
    mask_kinds: NDArray[np.uint8]  # [k] masks.NO_MASK where there is none
    mask_starts: NDArray[np.int64]  # [k] into mask_data
    mask_ends: NDArray[np.int64]  # [k]
    mask_data: NDArray[np.uint8]
    mask_weights: NDArray[np.float32]  # [k] in the mask loss, in (0, 1]; 1 where there is none
    mask_makers: NDArray[np.int32]  # [k] into makers; 0 where there is none
    makers: tuple[str, ...]  # who made masks; the first, "", are humans
    crowd_starts: NDArray[np.int64]  # [n + 1]
    crowd_boxes: NDArray[np.float32]  # [m, 4]
    keypoints: PackedKeypoints | None = None

    @property
    def true_masks(self) -> NDArray[np.bool_]:
        """[k] which objects have a mask that a human made."""
        return (self.mask_kinds != NO_MASK) & (self.mask_makers == 0)

    def makers_of_classes(self, count: int) -> list[Counter[str]]:
        """Of each of `count` classes, how many masks each other maker than humans has made."""
        found = [Counter[str]() for _ in range(count)]
        taught = np.column_stack([self.labels, self.mask_makers])[self.mask_makers > 0]
        for (label, maker), times in zip(*np.unique(taught, axis=0, return_counts=True), strict=True):
            found[label - 1][self.makers[maker]] = int(times)
        return found

    def with_objects(self) -> "PackedAnnotations":
        """Those of the images that have an object; crowd regions of the others go with them."""
        kept = np.diff(self.object_starts) > 0
        crowds = np.diff(self.crowd_starts)
        return replace(
            self,
            image_ids=self.image_ids[kept],
            sizes=self.sizes[kept],
            file_names=self.file_names[kept],
            object_starts=np.append(self.object_starts[:-1][kept], self.object_starts[-1]),
            crowd_starts=np.append(0, crowds[kept].cumsum()),
            crowd_boxes=self.crowd_boxes[np.repeat(kept, crowds)],
        )


def pack_annotations(
    document: Mapping[str, Any],
    classes: ClassTable,
    images_dir: Path,
    *,
    source: str,
    require_masks: bool = True,
    require_keypoints: bool = True,
    keypoints: KeypointsConfig | None = None,
    progress: Progress | None = None,
) -> tuple[PackedAnnotations, Report]:
    """Check a parsed annotation file and its images, and pack what can be used.

    The segmentation of an object is looked at only where `classes` says that true masks of its class are read, or
    another than a human made it (`mask_origin`); those of other objects, and of crowd regions, are not even taken out
    of their annotations. `source` names the file in messages.
    Raises ValueError as `AnnotationFile`, and where no object is left, none has a mask (`require_masks`), or none has
    a keypoint though `keypoints` says which objects have (`require_keypoints`).
    """
    file = AnnotationFile(document, classes, source)
    file.check_files(images_dir, progress)
    rows = _Rows()
    if keypoints is not None and keypoints.used:
        rows.keypoints = KeypointRows(keypoints, classes, file.document["categories"], source)
    with without_collections():
        rows.add_all(file)
    packed = rows.packed(file)
    report = Report(
        source=source,
        images=len(file.names),
        images_without_objects=int((np.diff(packed.object_starts) == 0).sum()),
        objects=len(packed.labels),
        objects_with_mask=int((packed.mask_kinds != NO_MASK).sum()),
        crowd_regions=len(packed.crowd_boxes),
        objects_with_keypoints=None if packed.keypoints is None else len(packed.keypoints.values),
        findings=file.tally.findings(),
        annotations=len(file.document["annotations"]),
    )
    if not report.objects:
        raise ValueError(f"no object is left to learn from.\n{report}")
    if require_masks and not report.objects_with_mask + file.without_pixel:
        wanted = ", ".join(classes.name_of_label(label) for label in classes.set_a_labels()[:8])
        of = f" of a class with masks ({wanted})" if wanted else ""
        raise ValueError(f"no object{of} has a mask that can be used.\n{report}")
    if require_keypoints and report.objects_with_keypoints == 0:
        raise ValueError(f"no object has a keypoint, and model.keypoints asks for some.\n{report}")
    return packed, report


@dataclass(kw_only=True)
class _Rows:
    """Annotations on their way into arrays."""

    object_images: list[int] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    mask_kinds: bytearray = field(default_factory=bytearray)
    mask_ends: list[int] = field(default_factory=list)
    mask_data: bytearray = field(default_factory=bytearray)
    mask_weights: list[float] = field(default_factory=list)
    mask_makers: list[int] = field(default_factory=list)
    makers: dict[str, int] = field(default_factory=lambda: {"": 0})
    crowd_images: list[int] = field(default_factory=list)
    crowd_boxes: list[Box] = field(default_factory=list)
    keypoints: KeypointRows | None = None

    def add_all(self, file: AnnotationFile) -> None:
        """Take in every annotation that can be used. ValueError: see `AnnotationFile.annotations`."""
        for one in file.annotations():
            box = _on_grid(one.box)
            if box is None:
                words = f"{one.where}: bbox {one.entry.get('bbox')}; expected more than 1/256 of a pixel"
                file.tally.add("box of no area", "left out", words)
            elif one.entry.get("iscrowd"):
                self.crowd_images.append(one.image)
                self.crowd_boxes.append(box)
            else:
                self._add(one, box, file)

    def _add(self, one: Annotated, box: Box, file: AnnotationFile) -> None:
        origin = mask_origin(one.entry, one.where, file.tally)
        mask = _mask(one, origin, file)
        kind, data = (NO_MASK, b"") if mask is None else mask
        self.mask_weights.append(1.0 if mask is None else origin.weight)
        self.mask_makers.append(0 if mask is None else self.makers.setdefault(origin.maker, len(self.makers)))
        if self.keypoints is not None:
            self.keypoints.add(one.entry, one.label, len(self.object_images), one.where, file.tally)
        self.object_images.append(one.image)
        self.boxes.append(box)
        self.labels.append(one.label)
        self.mask_kinds.append(kind)
        self.mask_data += data
        self.mask_ends.append(len(self.mask_data))

    def packed(self, file: AnnotationFile) -> PackedAnnotations:
        """Everything in the order of images; within an image in the order of the file."""
        n = len(file.image_ids)
        object_images = np.array(self.object_images, dtype=np.int64)
        order = np.argsort(object_images, kind="stable")
        crowd_images = np.array(self.crowd_images, dtype=np.int64)
        crowd_order = np.argsort(crowd_images, kind="stable")
        ends = np.array(self.mask_ends, dtype=np.int64)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if len(ends) else ends
        return PackedAnnotations(
            image_ids=np.array(file.image_ids, dtype=np.int64),
            sizes=np.array(file.sizes, dtype=np.int32).reshape(n, 2),
            file_names=np.array([os.fsencode(name) for name in file.names]),
            object_starts=np.searchsorted(object_images[order], np.arange(n + 1)),
            boxes=np.array(self.boxes, dtype=np.float32).reshape(-1, 4)[order],
            labels=np.array(self.labels, dtype=np.int64)[order],
            mask_kinds=np.frombuffer(bytes(self.mask_kinds), dtype=np.uint8)[order],
            mask_starts=starts[order],
            mask_ends=ends[order],
            mask_data=np.frombuffer(self.mask_data, dtype=np.uint8),
            mask_weights=np.array(self.mask_weights, dtype=np.float32)[order],
            mask_makers=np.array(self.mask_makers, dtype=np.int32)[order],
            makers=tuple(self.makers),
            crowd_starts=np.searchsorted(crowd_images[crowd_order], np.arange(n + 1)),
            crowd_boxes=np.array(self.crowd_boxes, dtype=np.float32).reshape(-1, 4)[crowd_order],
            keypoints=None if self.keypoints is None else self.keypoints.packed(order),
        )


def _mask(one: Annotated, origin: MaskOrigin, file: AnnotationFile) -> tuple[int, bytes] | None:
    """An object's mask; None where it has none that is to be read: then the segmentation is not even looked at."""
    of_set_a = file.classes.has_mask[one.label - 1]
    if not origin.weight or not (origin.maker or file.classes.true_masks_are_read(one.label)):
        return None
    if not of_set_a and one.entry.get("segmentation") in (None, []):
        return None  # as an object with a box alone has it
    pixelless = file.without_pixel
    mask = file.mask(one)
    return mask if file.without_pixel == pixelless else None  # as `CocoDataset` would find


def _on_grid(box: Box) -> Box | None:
    """Rounded to 1/256 pixel, on which grid float32 mirrors a box without error (at sides of at most 16 384).

    None where no area is left.
    """
    x0, y0, x1, y1 = (round(v * _GRID) / _GRID for v in box)
    return None if x1 <= x0 or y1 <= y0 else (x0, y0, x1, y1)
