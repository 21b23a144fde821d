"""Which classes have masks (set A, Sec. 3.1), and what taught those of the others: the words of `model.classes`, the
random splits of Figure 3, and `auto`, by the masks that there are.

An annotation may say of its mask: `mask_source`, who made it ("segmenter", "transfer", ...; absent: a human, the
truth), `mask_quality`, the IoU that is expected of it, and `mask_weight`, how much it counts in the mask loss (absent:
1; 0: nothing, and the object is as one with a box alone). Masks with a source are read for every class.

`random:E3_A40B40` is trial 3 of five with 40 classes in A and 40 in B. The draws are those of the paper's own
code: one numpy generator of seed 3; trials outside, sizes of A (20, 30, 40, 50, 60 of 80) inside; each split a
choice without replacement of positions among the categories by ascending id. Sizes for another number of
classes C are ours: 2 to 6 eighths of C, rounded down, which for 80 are the paper's.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.classes import MASK_SOURCES, ClassTable, class_table
from model.files import first_few
from training.data.findings import Outcome, Tally, in_one_line

TRIALS = 5
SEED = 3
EIGHTHS = (2, 3, 4, 5, 6)
"""Sizes of set A in eighths of the classes; of COCO's 80: 20, 30, 40, 50, 60."""
PREFIX = "random:"
AUTO = "auto"
MASKS_OF_SET_A = 80
"""True masks in the training set from which `auto` takes a class into set A: with so many a class's masks are halfway
from those of a class that has none to those that it gets with all of its own (docs/training.md: between 60 and 100)."""


def split_classes(categories: Sequence[Mapping[str, Any]], mask_classes: str) -> ClassTable:
    """The table of COCO `categories`, with set A chosen by `mask_classes`.

    `mask_classes` is `random:` and the name of a random split, or what `model.classes.class_table` takes; for `auto`
    see `reading_all`.

    ValueError: as `class_table`; a split that this number of classes does not have, with the nearest names.
    """
    word = mask_classes.strip()
    if word == AUTO:
        raise ValueError(
            f"--mask-classes {AUTO}: is decided by the masks of a training set; give all, voc, nonvoc or names here"
        )
    if not word.startswith(PREFIX):
        return class_table(categories, mask_classes)
    table = class_table(categories, "all")
    splits = random_splits(table.num_classes)
    name = word.removeprefix(PREFIX).strip()
    if name not in splits:
        near = difflib.get_close_matches(name, splits, n=3) or list(splits)[: len(EIGHTHS)]
        raise ValueError(
            f"--mask-classes {word}: no such split of {table.num_classes} classes; "
            f"there are {len(splits)}, such as {', '.join(PREFIX + one for one in near)}"
        )
    chosen = set(splits[name])
    return table.without_masks(
        position + 1 for position in range(table.num_classes) if position not in chosen
    )


def judged_classes(trained: ClassTable, mask_classes: str) -> ClassTable:
    """The classes of a network with the set A by which it is judged: `auto` is the one that it was trained with.

    ValueError: as `split_classes`.
    """
    if mask_classes.strip() == AUTO:
        return trained
    categories = [{"id": i, "name": name} for i, name in zip(trained.ids, trained.names, strict=True)]
    return split_classes(categories, mask_classes)


class MaskOrigin(NamedTuple):
    """What an annotation says of its mask."""

    maker: str
    """Its `mask_source`; empty: a human."""
    weight: float
    """In the mask loss, in [0, 1]; 0 where it teaches nothing."""


def mask_origin(entry: Mapping[str, Any], where: str, tally: Tally) -> MaskOrigin:
    """What the annotation `entry` says of its mask; null is as absent.

    What cannot be read is counted: a mask of which it is not known who made it, or how much it counts, teaches nothing.
    """
    maker, quality, weight = (entry.get(key) for key in ("mask_source", "mask_quality", "mask_weight"))
    if maker is None and quality is None and weight is None:
        return MaskOrigin("", 1.0)
    outcome: Outcome = "kept without its mask" if entry.get("segmentation") else "kept"
    if quality is not None and not _is_share(quality):
        words = f"{where}: mask_quality {quality!r:.100}; expected an IoU from 0 to 1"
        tally.add("mask_quality that is no number from 0 to 1", "kept", words)
    if maker is not None and not (isinstance(maker, str) and maker.strip()):
        words = (
            f"{where}: mask_source {maker!r:.100}; expected a word for who made the mask, or none for a human"
        )
        tally.add("mask_source that is no word", outcome, words)
        return MaskOrigin("?", 0.0)
    if weight is not None and not _is_share(weight):
        words = f"{where}: mask_weight {weight!r:.100}; expected a number from 0 to 1"
        tally.add("mask_weight that is no number from 0 to 1", outcome, words)
        weight = 0.0
    return MaskOrigin(
        "" if maker is None else maker.strip(), 1.0 if weight is None else float(np.float32(weight))
    )


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def reading_all(categories: Sequence[Mapping[str, Any]]) -> ClassTable:
    """The table of COCO `categories` with which every mask is read: of none is known yet whether it is set A's.

    ValueError: as `class_table`.
    """
    table = class_table(categories, "all")
    return table.with_sources(["some_masks"] * table.num_classes)


def as_they_come(classes: ClassTable, true: NDArray[np.int64], taught: NDArray[np.int64]) -> ClassTable:
    """The table by the masks that there are, int64 [C]: of each class those that humans made, and the others.

    Set A are the classes with at least `MASKS_OF_SET_A` true ones; where there is no such class, those that have
    half as many as the one with the most, or more.
    """
    most = int(true.max())
    enough = MASKS_OF_SET_A if most >= MASKS_OF_SET_A else max((most + 1) // 2, 1)
    return classes.with_sources(
        [
            "masks" if trues >= enough else "some_masks" if trues else "taught" if others else "boxes"
            for trues, others in zip(true.tolist(), taught.tolist(), strict=True)
        ]
    )


def with_taught(classes: ClassTable, taught: NDArray[np.int64]) -> ClassTable:
    """The table of a given set A, where classes of set B with masks that something else made [C] are "taught"."""
    return classes.with_sources(
        [
            "taught" if source == "boxes" and others else source
            for source, others in zip(classes.mask_sources, taught.tolist(), strict=True)
        ]
    )


_IN_WORDS = {
    "masks": "set A, true masks",
    "some_masks": "some true masks, fewer than set A asks",
    "taught": "masks taught by another",
    "boxes": "boxes alone",
}


def source_lines(
    classes: ClassTable, objects: NDArray[np.int64], true: NDArray[np.int64], makers: Sequence[Counter[str]]
) -> tuple[str, ...]:
    """What the masks of the classes are learned from, a line to each source that there is.

    Args:
        objects, true: int64 [C], of each class its objects, and those with a mask that a human made.
        makers: of each class, how many masks are read of each other maker.
    """
    lines = []
    for source in MASK_SOURCES:
        mine = [at for at, one in enumerate(classes.mask_sources) if one == source]
        if not mine:
            continue
        others = sum((makers[at] for at in mine), Counter[str]())
        of_others = "".join(f", {count} by {maker}" for maker, count in others.most_common(4))
        masks = f" ({true[mine].sum()} with a true mask{of_others})" if source != "boxes" else ""
        count = f"{len(mine)} class{'es' if len(mine) > 1 else ''}"
        names = first_few([classes.names[at] for at in mine])
        lines.append(
            in_one_line(f"{_IN_WORDS[source]}: {count}, {objects[mine].sum()} objects{masks}: {names}")
        )
    return tuple(lines)


def random_splits(num_classes: int) -> dict[str, tuple[int, ...]]:
    """Positions (0 first, ascending) of set A in every random split, by name, in the order of the draws.

    ValueError with fewer than 8 classes: the smallest A would hold fewer than 2.
    """
    if num_classes < 8:
        raise ValueError(f"random splits need at least 8 classes; there are {num_classes}")
    generator = np.random.RandomState(SEED)
    splits: dict[str, tuple[int, ...]] = {}
    for trial in range(1, TRIALS + 1):
        for eighths in EIGHTHS:
            size = num_classes * eighths // 8
            drawn = generator.choice(num_classes, size, replace=False)
            splits[f"E{trial}_A{size}B{num_classes - size}"] = tuple(sorted(int(i) for i in drawn))
    return splits
