"""Which classes have masks (set A, Sec. 3.1): the words of `model.classes`, and the random splits of Figure 3.

`random:E3_A40B40` is trial 3 of five with 40 classes in A and 40 in B. The draws are those of the paper's own
code: one numpy generator of seed 3; trials outside, sizes of A (20, 30, 40, 50, 60 of 80) inside; each split a
choice without replacement of positions among the categories by ascending id. Sizes for another number of
classes C are ours: 2 to 6 eighths of C, rounded down, which for 80 are the paper's.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.classes import ClassTable, class_table

TRIALS = 5
SEED = 3
EIGHTHS = (2, 3, 4, 5, 6)
"""Sizes of set A in eighths of the classes; of COCO's 80: 20, 30, 40, 50, 60."""
PREFIX = "random:"


def split_classes(categories: Sequence[Mapping[str, Any]], mask_classes: str) -> ClassTable:
    """The table of COCO `categories`, with set A chosen by `mask_classes`.

    `mask_classes` is `random:` and the name of a random split, or what `model.classes.class_table` takes.

    ValueError: as `class_table`; a split that this number of classes does not have, with the nearest names.
    """
    word = mask_classes.strip()
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
