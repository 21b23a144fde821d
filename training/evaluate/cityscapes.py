"""Cityscapes' own average precision of instances (Cordts et al., 2016), over masks; that of COCO is another.

The rules of its evalInstanceLevelSemanticLabeling: overlaps must be more than .50 to .95; regions below 100 pixels,
groups and void count for nothing, nor does a detection of which a larger share than the overlap asked for lies in
them; an object that several detections find is found by the surest, and the others are wrong; precision is integrated
over recall by trapezoids, without COCO's interpolation and without a limit on detections. AP50m and AP100m need the
depth of each object and are not made.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from model.classes import ClassTable
from training.evaluate.truth import GroundObject, GroundTruth, RunLengths

OVERLAPS = np.arange(0.5, 1.0, 0.05)
LEAST_PIXELS = 100
"""Of an object that is to be found."""


@dataclass(frozen=True, kw_only=True)
class CityscapesPrecision:
    """Mean over classes, in [0, 1]; None where no object is to be found. `ap` is the mean over the overlaps."""

    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class CityscapesTable:
    """Average precisions, float64 [class, overlap]; NaN for a class without an object to find."""

    precision: NDArray[np.float64]
    category_ids: tuple[int, ...]

    def over(self, category_ids: Collection[int]) -> CityscapesPrecision:
        """The mean over some of the classes."""
        rows = [row for row, one in enumerate(self.category_ids) if one in category_ids]
        found = self.precision[rows]
        found = found[~np.isnan(found[:, 0])]
        if not len(found):
            return CityscapesPrecision(ap=None, ap50=None)
        return CityscapesPrecision(ap=float(found.mean()), ap50=float(found[:, 0].mean()))


@dataclass(frozen=True)
class _Pairs:
    """The G true regions and P detections of a class in an image.

    shared: pixels [P, G] of both. true: pixels [G]. group, small: bool [G]. found, scores, void: [P], pixels, score,
    pixels in void.
    """

    shared: NDArray[np.int64]
    true: NDArray[np.int64]
    group: NDArray[np.bool_]
    small: NDArray[np.bool_]
    found: NDArray[np.int64]
    scores: NDArray[np.float64]
    void: NDArray[np.int64]


def cityscapes_precision(
    truth: GroundTruth, results: Sequence[Mapping[str, Any]], classes: ClassTable
) -> CityscapesTable:
    """Cityscapes' average precision of COCO results, by their masks and scores. Crowds of the truth are groups.

    Raises:
        ValueError: see `require_void`.
    """
    require_void(truth)
    by_place: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        by_place[result["image_id"], result["category_id"]].append(result)
    rows = []
    for category_id in classes.ids:
        places = []
        for image_id in truth.image_ids:
            objects = [one for one in truth.objects[image_id] if one.category_id == category_id]
            mine = by_place.get((image_id, category_id), [])
            if objects or mine:
                places.append(_pairs(objects, mine, truth.void[image_id]))
        rows.append([_average_precision(places, overlap) for overlap in OVERLAPS])
    return CityscapesTable(np.array(rows, np.float64).reshape(-1, len(OVERLAPS)), classes.ids)


def require_void(truth: GroundTruth) -> None:
    """ValueError where an image of the truth does not say which of its regions are void."""
    if lacking := [image_id for image_id in truth.image_ids if image_id not in truth.void]:
        raise ValueError(
            f"{len(lacking)} of {len(truth.image_ids)} images have no 'void' in the annotation file, the first "
            f"{truth.file_names[lacking[0]]}; Cityscapes' precision needs the file that "
            "`python -m training.datasets convert cityscapes` writes"
        )


def _pairs(
    objects: Sequence[GroundObject], results: Sequence[Mapping[str, Any]], void: RunLengths | None
) -> _Pairs:
    known = [(one, one.mask) for one in objects if one.mask is not None]
    found = np.array([int(mask_utils.area(one["segmentation"])) for one in results], np.int64)
    results = [one for one, pixels in zip(results, found.tolist(), strict=True) if pixels]
    found = found[found > 0]
    masks = [one["segmentation"] for one in results]
    true = np.array([int(mask_utils.area(mask)) for _, mask in known], np.int64)
    shared = _shared(masks, found, [mask for _, mask in known])
    return _Pairs(
        shared=shared,
        true=true,
        group=np.array([one.crowd for one, _ in known], bool),
        small=true < LEAST_PIXELS,
        found=found,
        scores=np.array([one["score"] for one in results], np.float64),
        void=_shared(masks, found, [] if void is None else [void]).sum(axis=1),
    )


def _shared(
    masks: Sequence[RunLengths], pixels: NDArray[np.int64], others: Sequence[RunLengths]
) -> NDArray[np.int64]:
    """Pixels that P masks of so many pixels share with G others, [P, G]."""
    if not masks or not others:
        return np.zeros((len(masks), len(others)), np.int64)
    shares = np.asarray(
        mask_utils.iou(list(masks), list(others), [1] * len(others))
    )  # of a crowd: of the first's
    return np.rint(shares * pixels[:, None]).astype(np.int64)


def _average_precision(places: Sequence[_Pairs], overlap: float) -> float:
    """Of one class; NaN where there is no object to find."""
    right: list[float] = []
    wrong: list[float] = []
    missed = 0
    for at in places:
        hits = at.shared / (at.true + at.found[:, None] - at.shared) > overlap
        for column in np.flatnonzero(~at.group & ~at.small):
            scores = np.sort(at.scores[hits[:, column]]).tolist()
            missed += not scores
            right += scores[-1:]
            wrong += scores[:-1]
        # A group below 100 pixels counts twice, as in Cityscapes' code.
        ignored = at.void + at.shared[:, at.group].sum(axis=1) + at.shared[:, at.small].sum(axis=1)
        wrong += at.scores[~hits.any(axis=1) & (ignored / at.found <= overlap)].tolist()
    objects = len(right) + missed
    if not objects:
        return float("nan")
    scores = np.array(right + wrong)
    order = np.argsort(-scores, kind="stable")
    hit = np.arange(len(scores))[order] < len(right)
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # of each score
    hits_so_far = np.cumsum(hit)[last]
    precision = np.concatenate([[1.0], hits_so_far / (last + 1)])
    return float(np.trapezoid(precision, np.concatenate([[0.0], hits_so_far / objects])))
