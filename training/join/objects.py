"""The objects of a join: those that need a mask, and those by whose true masks the sources are judged.

Set B's own masks are never read: an object's segmentation counts as truth only where its class is in set A and no
`mask_source` says that something has made it.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.classes import ClassTable
from training.data.annotations import Annotated, AnnotationFile, Box, read_annotations
from training.data.masks import encoded
from training.data.tools import Reading
from training.evaluate.truth import RunLengths
from training.join.grids import Boxes

JUDGED_PER_CLASS = 200
"""Objects of a class by which sources are judged, at most; spread evenly over the file."""


class Placed(NamedTuple):
    """An object: its annotation's number in the file, its image's, label, box in pixels, and true mask if known."""

    annotation: int
    image: int
    label: int
    box: Box
    truth: RunLengths | None


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Objects of a COCO file, image after image."""

    document: Mapping[str, Any]
    """What the file holds, in COCO's own form."""
    names: Sequence[str]
    """Of all image files of the document."""
    sizes: Sequence[tuple[int, int]]
    """(height, width) of all images."""
    objects: tuple[Placed, ...]

    @property
    def boxes(self) -> Boxes:
        """[N, 4]."""
        return np.array([one.box for one in self.objects], np.float32).reshape(-1, 4)

    @property
    def labels(self) -> NDArray[np.int64]:
        """[N]."""
        return np.array([one.label for one in self.objects], np.int64)

    def by_image(self) -> list[tuple[int, list[int]]]:
        """The number of each image that has an object, with its objects' positions."""
        positions = range(len(self.objects))
        grouped = groupby(positions, key=lambda position: self.objects[position].image)
        return [(image, list(some)) for image, some in grouped]

    def of_first(self, images: int | None) -> "Objects":
        """Those of the first so many images; all where `images` is None."""
        kept = tuple(one for one in self.objects if images is None or one.image < images)
        return replace(self, objects=kept)


def load_objects(
    annotations: Path,
    images_dir: Path,
    classes: ClassTable,
    reading: Reading | None = None,
    *,
    truth_of: Collection[int],
    per_class: int = JUDGED_PER_CLASS,
    only_with_truth: bool = False,
) -> Objects:
    """The objects of a COCO file, crowd regions aside, by the checks of training (`training.data.annotations`).

    Of objects whose true mask is known at most `per_class` of each class are kept. `truth_of`: the labels whose masks
    are read as truth. `only_with_truth`: leave out the others, as an evaluation does, and that takes all whatever
    their number.

    Raises:
        ValueError: see `AnnotationFile`; or no object is left.
    """
    document = read_annotations(annotations, reading)
    file = AnnotationFile(document, classes, source := str(annotations))
    file.check_files(images_dir)
    numbers = {id(entry): number for number, entry in enumerate(file.document["annotations"])}
    found = [
        _placed(one, numbers[id(one.entry)], file, truth_of)
        for one in file.annotations()
        if not one.entry.get("iscrowd")
    ]
    kept = [one for one in found if one.truth is not None] if only_with_truth else _thinned(found, per_class)
    if not kept:
        raise ValueError(f"{source}: no object is left that could be given a mask or be judged by")
    kept.sort(key=lambda one: (one.image, one.annotation))
    return Objects(document=file.document, names=file.names, sizes=file.sizes, objects=tuple(kept))


def require_truth(objects: Objects, source: str) -> Counter[int]:
    """How many objects of each label can be judged by; ValueError where there are none."""
    counts = Counter(one.label for one in objects.objects if one.truth is not None)
    if not counts:
        raise ValueError(
            f"{source}: no object of set A has a mask, and by nothing else can be decided which masks to trust; "
            "give some objects masks, or name the classes that have them in data.mask_classes"
        )
    return counts


def _placed(one: Annotated, number: int, file: AnnotationFile, truth_of: Collection[int]) -> Placed:
    truth: RunLengths | None = None
    if one.label in truth_of and not one.entry.get("mask_source"):
        packed = file.mask(one)
        truth = None if packed is None else encoded(*packed, *file.sizes[one.image])
    return Placed(number, one.image, one.label, one.box, truth)


def _thinned(found: Sequence[Placed], per_class: int) -> list[Placed]:
    known: dict[int, list[Placed]] = defaultdict(list)
    for one in found:
        if one.truth is not None:
            known[one.label].append(one)
    kept = [one for one in found if one.truth is None]
    for some in known.values():
        count = min(len(some), per_class)
        kept += [some[position * len(some) // count] for position in range(count)]
    return kept
