"""Keypoints of COCO annotations, checked and packed (Mask R-CNN, Sec. 5).

COCO counts a keypoint's place in whole pixels, the first being 0; here, as in boxes, the first pixel goes from 0 to
1, so half a pixel is added.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.classes import ClassTable
from model.keypoints.layout import KeypointsConfig, keypoint_labels
from model.targets import Target
from training.data.findings import Tally, are_numbers, refuse

PIXEL_CENTRE = 0.5


@dataclass(frozen=True, kw_only=True)
class PackedKeypoints:
    """The keypoints of all objects: row `rows[k]` of `values` holds those of object k, -1 where it has none."""

    rows: NDArray[np.int32]  # [k]
    values: NDArray[np.float32]  # [m, K, 3]: x, y in pixels, COCO's visibility (0 no label, 1 hidden, 2 seen)

    def of_objects(self, objects: slice) -> Tensor:
        """float32 [N, K, 3]; zeros where an object has none."""
        rows = self.rows[objects]
        found = np.zeros((len(rows), *self.values.shape[1:]), dtype=np.float32)
        found[rows >= 0] = self.values[rows[rows >= 0]]
        return torch.from_numpy(found)


class KeypointRows:
    """Keypoints on their way into arrays.

    Args:
        config: which keypoints there are.
        classes: of the set; those of `config.classes` have keypoints.
        categories: of the annotation file, whose own `keypoints`, where it has them, must be the same names.
        source: names the file in messages.

    Raises:
        ValueError: an unknown class with keypoints, or a category with other keypoints.
    """

    def __init__(
        self,
        config: KeypointsConfig,
        classes: ClassTable,
        categories: Sequence[Mapping[str, Any]],
        source: str,
    ) -> None:
        self.count = len(config.all_names)
        self._labels = set(keypoint_labels(config, classes))
        self._objects: list[int] = []
        self._values: list[list[float]] = []
        ids = {classes.id_of_label(label) for label in self._labels}
        problems = []
        for category in categories:
            theirs = category.get("keypoints")
            if category["id"] in ids and theirs is not None and theirs != list(config.all_names):
                problems.append(
                    f"category {category['id']} has the keypoints {theirs!r:.200}; expected those of model.keypoints, "
                    f"{list(config.all_names)!r:.200}"
                )
        refuse(source, problems)

    def add(self, annotation: Mapping[str, Any], label: int, number: int, where: str, tally: Tally) -> None:
        """Take in those of object `number`; what cannot be read is left out and counted."""
        if label not in self._labels or annotation.get("keypoints") is None:
            return
        values = annotation["keypoints"]
        if not can_be_read(values, self.count):
            words = f"{where}: {values!r:.100}; expected {self.count} times x, y and visibility 0, 1 or 2"
            tally.add("keypoints that cannot be read", "kept without its keypoints", words)
        elif any(values[2::3]):
            self._objects.append(number)
            self._values.append(values)

    def packed(self, order: NDArray[np.int64]) -> PackedKeypoints:
        """Everything, objects in `order`."""
        rows = np.full(len(order), -1, dtype=np.int32)
        rows[self._objects] = np.arange(len(self._objects), dtype=np.int32)
        values = np.array(self._values, dtype=np.float32).reshape(-1, self.count, 3)
        values[:, :, :2] += PIXEL_CENTRE
        values[values[:, :, 2] == 0] = 0.0
        return PackedKeypoints(rows=rows[order], values=values)


def can_be_read(values: Any, count: int) -> bool:
    """Whether `values` are x, y and visibility of `count` keypoints."""
    if not isinstance(values, list) or len(values) != 3 * count or not are_numbers(values, 1e6):
        return False
    return set(values[2::3]) <= {0, 1, 2}


def mirrored_keypoints(target: Target, width: int) -> Tensor:
    """The keypoints [N, K, 3] of a target whose image is mirrored: a left hand is a right hand then."""
    keypoints = target["keypoints"][:, target["mirrored"]]
    labelled = keypoints[:, :, 2] > 0
    x = torch.where(labelled, width - keypoints[:, :, 0], 0.0)
    return torch.stack([x, keypoints[:, :, 1], keypoints[:, :, 2]], dim=2)


def shifted_keypoints(keypoints: Tensor, *, x: float, y: float) -> Tensor:
    """Keypoints [N, K, 3] of an image that was moved by so many pixels; those that leave it are outside every RoI."""
    step = keypoints.new_tensor([x, y, 0.0])
    return torch.where(keypoints[:, :, 2:] > 0, keypoints + step, keypoints)


def coco_keypoints(keypoints_K3: Sequence[Sequence[float]]) -> list[float]:
    """[x, y, score, x, y, score, ...] as COCO's results have it."""
    return [value for x, y, score in keypoints_K3 for value in (x - PIXEL_CENTRE, y - PIXEL_CENTRE, score)]


def labelled(keypoints: Collection[float]) -> int:
    """How many of an annotation's keypoints are labelled."""
    return sum(v > 0 for v in list(keypoints)[2::3])
