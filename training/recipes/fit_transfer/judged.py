"""Masks of classes left out of the fit of T, beside those of their own mask weights and of the mean of the others."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.evaluate.predictions import ObjectMask, predict
from training.evaluate.truth import GroundTruth, load_ground_truth
from training.recipes.fit_transfer.fitted import Finished
from training.recipes.fit_transfer.ridge import Ridge, mean_of_others

STANDARD_ERRORS = 2.0
"""A difference of fewer of its own standard errors counts as chance."""


@dataclass(frozen=True, kw_only=True)
class ClassMasks:
    """Mean IoU of a class's masks on its ground-truth boxes, by three rows of mask weights.

    `own`: the class's; `left_out`: T's, fitted without the class; `mean`: that of the other classes, which is what is
    left where T says nothing, and less than a class-agnostic row that was trained. `filled`: of the filled box.
    """

    name: str
    objects: int
    own: float
    left_out: float
    mean: float
    filled: float


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The classes that have objects; means are over classes, each counted once."""

    classes: tuple[ClassMasks, ...]

    def over(self, row: str) -> float:
        """Mean IoU over the classes by one of the rows of `ClassMasks`."""
        return float(np.mean([getattr(one, row) for one in self.classes]))

    @property
    def gains(self) -> tuple[float, float]:
        """Mean over classes of left_out - mean, and its standard error (infinite of one class)."""
        gains = [one.left_out - one.mean for one in self.classes]
        error = float(np.std(gains, ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else float("inf")
        return float(np.mean(gains)), error

    @property
    def better(self) -> int:
        """1 where T is better than the mean row by more than chance, -1 where it is worse, else 0."""
        gain, error = self.gains
        return 0 if abs(gain) <= STANDARD_ERRORS * error else (1 if gain > 0 else -1)


def truth_of(
    finished: Finished, annotations: Path, images: Path, *, max_images: int | None = None
) -> GroundTruth:
    """The objects of the classes that T is fitted on; ValueError where there are none, or the file is broken."""
    only = {finished.classes.id_of_label(label) for label in finished.labels}
    return load_ground_truth(
        annotations, finished.classes, images, only_categories=only, max_images=max_images
    )


def judge_left_out(finished: Finished, fit: Ridge, truth: GroundTruth, images: Path) -> Judged:
    """The masks of every class of `truth`; those of classes left out, and of the mean row, have the others' mean bias.

    Raises ValueError where no object has a mask, or no image can be read.
    """
    weights, labels = finished.network.mask_weights, list(finished.labels)
    assert weights.specific is not None and weights.bias is not None
    rows, biases = weights.specific.detach()[labels], weights.bias.detach()[labels]
    of_others = mean_of_others(biases)
    own = _masks(finished, truth, images, rows, biases)
    left_out = _masks(finished, truth, images, fit.left_out, of_others)
    mean = _masks(finished, truth, images, mean_of_others(rows), of_others)
    judged = [
        ClassMasks(
            name=finished.classes.name_of_label(label),
            objects=len(own[label]),
            own=_mean(own[label]),
            left_out=_mean(left_out[label]),
            mean=_mean(mean[label]),
            filled=float(np.mean([one.box_fill for one in own[label]])),
        )
        for label in labels
        if own[label]
    ]
    if not judged:
        raise ValueError("no object of the classes that T is fitted on has a mask to judge by")
    return Judged(classes=tuple(judged))


@torch.no_grad()
def _masks(
    finished: Finished, truth: GroundTruth, images: Path, rows_PF: Tensor, biases_P: Tensor
) -> dict[int, list[ObjectMask]]:
    """The masks of all objects by label, with these rows as the mask weights of the classes for the while."""
    weights, labels = finished.network.mask_weights, list(finished.labels)
    assert weights.specific is not None and weights.bias is not None
    before = weights.specific.clone(), weights.bias.clone()
    weights.specific[labels], weights.bias[labels] = rows_PF, biases_P
    try:
        found = predict(finished.network, finished.classes, images, truth, detect=False).object_masks
    finally:
        weights.specific.copy_(before[0])
        weights.bias.copy_(before[1])
    of_label: dict[int, list[ObjectMask]] = {label: [] for label in labels}
    for one in found:
        of_label[finished.classes.label_of_id(one.category_id)].append(one)
    return of_label


def _mean(masks: list[ObjectMask]) -> float:
    return float(np.mean([one.iou for one in masks]))
