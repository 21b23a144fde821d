"""Which objects of a COCO file get a mask, and the file with these put in: the input, and nothing of it lost."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.annotations import AnnotationFile, read_annotations
from training.data.coco import classes_of
from training.data.findings import Finding
from training.data.tools import Reading
from training.prompt_masks.pixels import Runs, area_of

SOURCE = "segmenter"
"""The `mask_source` of a prompted mask."""
OF_A_MASK = ("segmentation", "mask_source", "mask_quality", "mask_weight")
"""Keys of an annotation that go with its mask."""
_NEW = "object without a mask"


@dataclass(frozen=True)
class Mask:
    """A mask of an object: `runs` is None where nothing of it was left inside the box."""

    runs: Runs | None
    quality: float


@dataclass(frozen=True)
class Picture:
    """An image that has objects to prompt for.

    objects: their places in the file's list of annotations, from 0. boxes: float32 XYXY [N, 4] in its pixels.
    """

    row: int
    name: str
    height: int
    width: int
    objects: tuple[int, ...]
    boxes: NDArray[np.float32]


@dataclass(frozen=True)
class Wanted:
    """What is to be done for a file: its pictures, and what else it holds."""

    pictures: tuple[Picture, ...]
    images: int
    kept: int
    """Objects that have a mask and keep it."""
    crowds: int
    findings: tuple[Finding, ...]

    @property
    def objects(self) -> int:
        """That get a mask."""
        return sum(len(picture.objects) for picture in self.pictures)


def wanted_masks(annotations: Path, images_dir: Path, *, every: bool) -> Wanted:
    """The objects of a file without a mask that can be used, or every object; crowd regions are none.

    Raises:
        ValueError: what a training on the file would be refused for, but for images that cannot be read.
    """
    if not images_dir.is_dir():
        raise ValueError(f"no folder of images {images_dir}")
    document = read_annotations(annotations, Reading(names="lenient"))
    file = AnnotationFile(document, classes_of(document, "all", annotations), str(annotations))
    file.take_stated_sizes(images_dir)
    place = {id(entry): number for number, entry in enumerate(file.document["annotations"])}
    objects: dict[int, list[int]] = {}
    boxes: dict[int, list[tuple[float, ...]]] = {}
    kept = crowds = 0
    for one in file.annotations():
        if one.entry.get("iscrowd"):
            crowds += 1
        elif not every and file.mask(one, missing=_NEW) is not None:
            kept += 1
        else:
            objects.setdefault(one.image, []).append(place[id(one.entry)])
            boxes.setdefault(one.image, []).append(one.box)
    pictures = tuple(
        Picture(row, file.names[row], *file.sizes[row], tuple(places), np.array(boxes[row], np.float32))
        for row, places in sorted(objects.items())
    )
    findings = tuple(finding for finding in file.tally.findings() if finding.kind != _NEW)
    return Wanted(pictures, len(file.names), kept, crowds, findings)


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_masks(
    annotations: Path, digest: str, masks: Mapping[int, Mask], without: set[int]
) -> dict[str, Any]:
    """The document of a file, with masks put in by the annotations' places.

    Args:
        digest: of the file, as it was read for `wanted_masks`.
        without: places of objects that lose what mask they have (those of images that could not be read).

    Raises:
        ValueError: the file is another one by now.
    """
    text = annotations.read_bytes()
    if hashlib.sha256(text).hexdigest() != digest:
        raise ValueError(f"{annotations}: was changed while masks were made for it; start again")
    document: dict[str, Any] = json.loads(text)
    for place, entry in enumerate(document["annotations"]):
        mask = masks.get(place)
        if mask is None and place not in without:
            continue
        for key in OF_A_MASK:
            entry.pop(key, None)
        if mask is not None and mask.runs is not None:
            entry["segmentation"], entry["area"] = mask.runs, area_of(mask.runs)
            entry["mask_source"], entry["mask_quality"] = SOURCE, mask.quality
    return document
