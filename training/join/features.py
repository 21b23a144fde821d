"""What the rule of trust looks at, of every object: numbers that are there without its true mask.

How much of itself each source is sure, how far the sources agree, the box, and how like its class is to one with masks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from training.join.grids import agreement, certainty
from training.join.objects import Objects
from training.join.sources import Said

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Features:
    """Numbers of N objects: `values` [N, F], and the name of each column."""

    names: tuple[str, ...]
    values: Floats

    def __add__(self, other: "Features") -> "Features":
        return Features(
            names=self.names + other.names, values=np.concatenate([self.values, other.values], axis=1)
        )


def features_of(said: Mapping[str, Said], objects: Objects, likeness: Floats) -> Features:
    """The features of all objects; `likeness` [C + 1] of each label, see `training.join.heads.likeness`."""
    sizes = np.array([objects.sizes[one.image] for one in objects.objects], np.float64)
    boxes = objects.boxes.astype(np.float64)
    width, height = (boxes[:, 2] - boxes[:, 0]), (boxes[:, 3] - boxes[:, 1])
    columns: dict[str, Floats] = {
        "box side, log": np.log(width * height) / 2,
        "share of the image, log": np.log(width * height / sizes.prod(axis=1)) / 2,
        "box shape, log": np.abs(np.log(width / height)),
        "likeness of the class": likeness[objects.labels],
    }
    return _named(columns) + agreements(said)


def agreements(said: Mapping[str, Said], *, of: tuple[str, ...] = ()) -> Features:
    """What the sources say of themselves and of each other; of the sources `of` alone where they are named.

    The agreement of a mask with the filled box is how far it fills the box.
    """
    columns: dict[str, Floats] = {}
    for name in of or said:
        if name != "box":
            columns[f"{name} is sure"] = certainty(said[name].maps)
        if said[name].quality.any():
            columns[f"{name} claims"] = said[name].quality
    for one, other in combinations(said, 2):
        if not of or one in of or other in of:
            columns[f"{one} and {other} agree"] = agreement(said[one].maps, said[other].maps)
    return _named(columns)


def _named(columns: Mapping[str, Floats]) -> Features:
    return Features(names=tuple(columns), values=np.stack(list(columns.values()), axis=1))
