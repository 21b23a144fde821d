"""Any COCO-format set as images and targets; true masks of set B are never read (Sec. 3.1)."""

import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from maskx_image import decode, read_header
from model.classes import ClassTable
from model.keypoints.layout import KeypointsConfig
from model.targets import Target, mask_windows
from training.config import TrainingConfig
from training.data.annotations import read_annotations
from training.data.augment import augment, augmented_target
from training.data.augment_config import AugmentConfig
from training.data.findings import Report, in_one_line, refuse
from training.data.image_files import (
    Progress,
    UnreadableImage,
    annotated_size_is_upright,
    decode_all,
    require_end,
    too_many,
)
from training.data.masks import NO_MASK, draw_crop
from training.data.packing import PackedAnnotations, pack_annotations
from training.data.sides import sides
from training.data.splits import (
    AUTO,
    as_they_come,
    reading_all,
    source_lines,
    split_classes,
    with_taught,
)
from training.data.tools import Reading
from training.progress import counted

MOST_OBJECTS = 10_000
"""Of an image to learn from: the memory of a step grows with the square of their number."""

Sample = tuple[Tensor, Target]
"""Image uint8 [3, H, W] in RGB, and its target."""


class CocoDataset(Dataset[Sample]):
    """Images of a folder with the annotations of a COCO instances file, checked when made (`AnnotationFile`).

    Give either `mask_classes` ("auto", or see `training.data.splits.split_classes`) or `classes`, the table of the set
    trained on, whose category ids and names must then hold here too. `report` tells what was found and what was
    left out. With `skip_empty` images without an object are checked and reported, and are no samples. `reading`
    says how freely the file and the names of images are taken. Nothing stays open, so loader workers may fork or spawn.
    """

    def __init__(
        self,
        images_dir: str | Path,
        annotations: str | Path,
        *,
        mask_classes: str | None = None,
        classes: ClassTable | None = None,
        augment: AugmentConfig | None = None,
        require_masks: bool = True,
        require_keypoints: bool = True,
        skip_empty: bool = False,
        reading: Reading | None = None,
        keypoints: KeypointsConfig | None = None,
        progress: Progress | None = None,
    ) -> None:
        if (mask_classes is None) == (classes is None):
            raise ValueError("give either mask_classes or classes, not both and not neither")
        self._images_dir = Path(images_dir)
        self._reading = reading or Reading()
        document = read_annotations(Path(annotations), reading)
        if classes is None:
            assert mask_classes is not None
            classes = classes_of(document, mask_classes, annotations)
        self.report: Report
        self._packed, self.report = pack_annotations(
            document,
            classes,
            self._images_dir,
            source=str(annotations),
            require_masks=require_masks,
            require_keypoints=require_keypoints,
            keypoints=keypoints,
            progress=progress,
        )
        self.classes: ClassTable = classes
        if mask_classes is not None:
            self.classes, self.report = _by_source(classes, mask_classes, self._packed, self.report)
        self._weighted = bool((self._packed.mask_weights != 1).any())
        self.listed = tuple(str(one["name"]).strip() for one in document["categories"])
        """Names of all categories of the file, with an object or without."""
        if skip_empty:
            self._packed = self._packed.with_objects()
        self._mirrored = torch.tensor(() if keypoints is None else keypoints.mirrored, dtype=torch.int64)
        self._augment = augment
        self._sides = None if augment is None else sides(augment.swapped_classes, classes)

    @property
    def packed(self) -> PackedAnnotations:
        """All annotations, in the order of the samples."""
        return self._packed

    def __len__(self) -> int:
        return len(self._packed.image_ids)

    def __getitem__(self, index: int | tuple[int, int]) -> Sample:
        """Image and target at `index`; (index, seed) augments them by that seed where so configured.

        UnreadableImage naming the file where it no longer decodes.
        """
        row, seed = index if isinstance(index, tuple) else (index, None)
        if not -len(self) <= row < len(self):
            raise IndexError(f"sample {row} of a set of {len(self)}")
        row %= len(self)
        height, width = self.size(row)
        pixels = read_picture(self.path(row), width=width, height=height)
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        target = self.target(row)
        if seed is not None and self._augment is not None:
            image, target = augment(image, target, seed, self._augment, self._sides)
        return image, target

    def augmented_target(self, row: int, seed: int) -> Target:
        """The target that `self[row, seed]` has, without decoding the image."""
        target = self.target(row)
        if self._augment is None:
            return target
        return augmented_target(target, self.size(row)[1], seed, self._augment, self._sides)

    def target(self, row: int) -> Target:
        """The target of one image, not augmented, without decoding the image."""
        packed = self._packed
        height, width = self.size(row)
        objects = slice(int(packed.object_starts[row]), int(packed.object_starts[row + 1]))
        crowds = slice(int(packed.crowd_starts[row]), int(packed.crowd_starts[row + 1]))
        boxes = torch.from_numpy(packed.boxes[objects].copy())
        labels = torch.from_numpy(packed.labels[objects].copy())
        windows = mask_windows(boxes, height, width).tolist()
        masks = [
            self._mask(i, window, height, width) for i, window in enumerate(windows, start=objects.start)
        ]
        target: Target = {
            "image_id": self.image_id(row),
            "boxes": boxes,
            "labels": labels,
            "has_mask": torch.tensor([mask.numel() > 0 for mask in masks], dtype=torch.bool),
            "masks": masks,
            "crowd_boxes": torch.from_numpy(packed.crowd_boxes[crowds].copy()),
        }
        if self._weighted:
            target["mask_weights"] = torch.from_numpy(packed.mask_weights[objects].copy())
        if packed.keypoints is not None:
            target["keypoints"] = packed.keypoints.of_objects(objects)
            target["mirrored"] = self._mirrored
        return target

    def decode_all(self, rows: Sequence[int]) -> None:
        """Decode the images at `rows` (`data.decode_first`).

        ValueError lists those that are broken; of a set that may be `without_some` they are warned of, unless they are
        too many.
        """
        problems = decode_all([self.path(row) for row in rows], counted("decoding images"))
        if not self._reading.without_some or too_many(len(problems), of=len(rows)):
            refuse(f"images of {self.report.source}", problems)
        for words in problems:
            print(f"warning: {words}; others take its place", file=sys.stderr)

    def require_few_objects(self) -> None:
        """ValueError that names images of more than `MOST_OBJECTS` objects."""
        counts = np.diff(self._packed.object_starts)
        problems = [
            f"image {self.image_id(row)} ({self.path(row)}): {counts[row]} objects; at most {MOST_OBJECTS} can be "
            "learnt from at once: cut the picture into tiles"
            for row in np.flatnonzero(counts > MOST_OBJECTS).tolist()
        ]
        refuse(self.report.source, problems)

    def path(self, row: int) -> Path:
        """File of the image at `row`."""
        return self._images_dir / os.fsdecode(bytes(self._packed.file_names[row]))

    def image_id(self, row: int) -> int:
        """Id of the image at `row` in the annotation file."""
        return int(self._packed.image_ids[row])

    def size(self, row: int) -> tuple[int, int]:
        """(height, width) of the image at `row`."""
        height, width = self._packed.sizes[row].tolist()
        return height, width

    def _mask(self, i: int, window: Sequence[int], height: int, width: int) -> Tensor:
        """The crop of object `i`; [0, 0] without a mask, or where no pixel of it lies in the window."""
        packed = self._packed
        kind = int(packed.mask_kinds[i])
        if kind != NO_MASK:
            data = packed.mask_data[int(packed.mask_starts[i]) : int(packed.mask_ends[i])].tobytes()
            crop = draw_crop(kind, data, window, height, width)
            if crop.any():  # a sliver between pixel centres would teach the class an empty mask
                return torch.from_numpy(crop)
        return torch.zeros((0, 0), dtype=torch.uint8)


def classes_of(document: Mapping[str, Any], mask_classes: str, source: str | Path) -> ClassTable:
    """The classes of a parsed annotation file, with set A chosen by `mask_classes`, for "auto" not yet
    (`training.data.splits.reading_all`); ValueError names `source`."""
    categories = document["categories"]
    try:
        return reading_all(categories) if mask_classes == AUTO else split_classes(categories, mask_classes)
    except ValueError as error:
        raise ValueError(f"{source}: {in_one_line(str(error))}") from error


def _by_source(
    classes: ClassTable, mask_classes: str, packed: PackedAnnotations, report: Report
) -> tuple[ClassTable, Report]:
    """The table and the report, once it is known which masks there are and who made them."""
    count = classes.num_classes
    objects = np.bincount(packed.labels - 1, minlength=count)
    true = np.bincount(packed.labels[packed.true_masks] - 1, minlength=count)
    makers = packed.makers_of_classes(count)
    taught = np.array([one.total() for one in makers])
    classes = as_they_come(classes, true, taught) if mask_classes == AUTO else with_taught(classes, taught)
    return classes, replace(report, sources=source_lines(classes, objects, true, makers))


def training_set(config: TrainingConfig, reading: Reading | None = None) -> CocoDataset:
    """The set that a configuration trains on, read as it, or `reading`, says; ValueError where it cannot be used."""
    found = CocoDataset(
        config.data.train_images,
        config.data.train_annotations,
        mask_classes=config.data.mask_classes,
        augment=config.augment,
        require_masks=needs_masks(config),
        skip_empty=config.data.skip_empty,
        reading=reading or config.data.reading,
        keypoints=config.model.keypoints,
        progress=counted("checking images"),
    )
    found.require_few_objects()
    return found


def needs_masks(config: TrainingConfig) -> bool:
    """Whether any stage of a training learns masks."""
    return config.schedule.end_to_end_steps + config.schedule.mask_steps > 0


def look_at_validation_set(
    config: TrainingConfig, classes: ClassTable, reading: Reading | None = None
) -> CocoDataset | None:
    """Check the set that will judge a network of `classes` as one to train on, and print what it holds.

    No mask of set B is read. None where `data.val_annotations` is empty: there is no such set. ValueError
    where it cannot be used. `reading`: see `training_set`.
    """
    if not config.data.val_annotations:
        return None
    try:
        found = CocoDataset(
            config.data.val_images,
            config.data.val_annotations,
            classes=classes,
            require_masks=False,
            require_keypoints=False,
            reading=reading or config.data.reading,
            keypoints=config.model.keypoints,
            progress=counted("checking validation images"),
        )
        if config.data.decode_first:
            found.decode_all(range(len(found)))
    except ValueError as error:
        raise ValueError(
            f"the validation set: {error}\n(set data.val_images and data.val_annotations to one that fits, or "
            "data.val_annotations to nothing)"
        ) from error
    print(found.report)
    return found


def read_picture(path: Path, *, width: int, height: int) -> NDArray[np.uint8]:
    """RGB pixels uint8 [height, width, 3] of the picture that annotations of this size were made on.

    That is the upright image, or the stored pixels where only their size fits (see `annotations`). Raises
    UnreadableImage naming the file where it is missing, broken or of another size.
    """
    try:
        require_end(path)
        data = path.read_bytes()
        upright = annotated_size_is_upright(read_header(io.BytesIO(data)), width, height)
        if upright is None:
            raise ValueError(f"expected {width} x {height} pixels, as its annotations say")
        pixels: NDArray[np.uint8] = decode(data, upright=upright)
    except (OSError, ValueError) as error:
        raise UnreadableImage(in_one_line(f"{path}: {error}")) from error
    return pixels
