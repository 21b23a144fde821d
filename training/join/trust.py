"""Whom to trust: for each object one source's mask, or the fused one, and how much it teaches.

Between a single source everywhere, a source for each class and one for each object the choice is made by what they
would have given for classes of set A, each judged without its own truth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluate.precision import mask_iou
from training.join.features import Features, Floats, agreements, features_of
from training.join.fusion import Fusion, fit_fusion
from training.join.grids import Maps, run_lengths, truth_on_boxes
from training.join.objects import Objects
from training.join.rule import Fitted, Labels, Rule, Scale, fit_rule
from training.join.sources import UNTAUGHT, Said

FUSED = "joined"
BY_CLASS, BY_OBJECT = "a source for each class", "a source for each object"
NOTHING, ALL = 0.5, 0.75
"""The predicted IoU up to which a mask teaches nothing (half of what it and the truth cover is then wrong), and from
which it teaches like a true one; its weight rises linearly between."""
WORTH = 0.02
"""What any other way to choose must gain over a single source, beyond its standard error: by so much the rule's mean
prediction was off on classes without masks, on average over eight runs (docs/trust.md); A says nothing of it."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A way to choose: the mean true IoU it would have given on set A, classes left out, its gain over the way chosen
    before it, and the gain's standard error over classes."""

    way: str
    iou: float
    gain: float
    gain_error: float


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is to be expected of N objects: grids of every source, the fused one among them, and their IoU [N, S]."""

    said: dict[str, Said]
    features: Features
    predicted: Floats

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the S sources."""
        return tuple(self.said)


@dataclass(frozen=True, kw_only=True)
class Trust:
    """The rule, fitted: predicts, fuses and chooses."""

    single: Rule
    """Of the sources alone, by which the fusion weighs them."""
    fusion: Fusion
    rule: Rule
    way: str
    """The name of a source, `BY_CLASS` or `BY_OBJECT`."""
    tried: tuple[Tried, ...]
    likeness: Floats

    def judge(self, said: Mapping[str, Said], objects: Objects) -> Judged:
        """What is to be expected of each object's masks; its truth, where it has one, is not asked."""
        features = features_of(said, objects, self.likeness)
        trust = self.single.predicted(features, objects.labels)
        fused = self.fusion.maps(said, trust)
        return self._judged(said, features, fused, objects.labels)

    def _judged(self, said: Mapping[str, Said], features: Features, fused: Maps, labels: Labels) -> Judged:
        all_said, features = with_fused(said, features, fused)
        return Judged(said=all_said, features=features, predicted=self.rule.predicted(features, labels))

    def chosen(self, judged: Judged, labels: Labels) -> NDArray[np.int64]:
        """The position of the source whose mask each object takes, [N]."""
        return choice(self.way, judged.sources, judged.predicted, labels)


def fit_trust(said: Mapping[str, Said], objects: Objects, likeness: Floats) -> tuple[Trust, "Evidence"]:
    """Fit to the objects that have a true mask; the class of every other one only lends its features' means.

    The evidence is what the rule says of the objects with truth, no truth of their classes known.
    """
    labels = objects.labels
    known = np.array([one.truth is not None for one in objects.objects])
    features = features_of(said, objects, likeness)
    scale = Scale.of(features.values, labels)
    of_known = Features(names=features.names, values=features.values[known])
    mine = {name: Said(one.maps[known], one.quality[known]) for name, one in said.items()}
    ious = {name: true_ious(one.maps, objects, np.flatnonzero(known)) for name, one in mine.items()}
    single = fit_rule(of_known, labels[known], ious, scale)
    truth = [one.truth for one in objects.objects if one.truth is not None]
    grids = truth_on_boxes(truth, objects.boxes[known])
    fusion, fused = fit_fusion(mine, tuple(said), single.left_out, grids, labels[known])
    every = fusion.maps(said, single.rule.predicted(features, labels))
    every[known] = fused
    _, features = with_fused(said, features, every)
    ious[FUSED] = true_ious(fused, objects, np.flatnonzero(known))
    of_known = Features(names=features.names, values=features.values[known])
    fitted = fit_rule(of_known, labels[known], ious, Scale.of(features.values, labels))
    truths = np.stack(list(ious.values()), axis=1)
    way, tried = best_way(tuple(ious), fitted.left_out, truths, labels[known])
    trust = Trust(
        single=single.rule, fusion=fusion, rule=fitted.rule, way=way, tried=tried, likeness=likeness
    )
    return trust, Evidence(known=known, true=truths, fitted=fitted)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Of the K objects with truth among N (`known` [N]): the true IoU [K, S] of each source, and what was predicted."""

    known: NDArray[np.bool_]
    true: Floats
    fitted: Fitted


def with_fused(said: Mapping[str, Said], features: Features, fused: Maps) -> tuple[dict[str, Said], Features]:
    """The sources with the fused masks as one more, and the features with those that speak of it."""
    everyone = {**said, FUSED: Said(fused, np.zeros(len(fused)))}
    return everyone, features + agreements(everyone, of=(FUSED,))


def choice(way: str, sources: Sequence[str], predicted: Floats, labels: Labels) -> NDArray[np.int64]:
    """The position [N] of the source that each object takes by one way of choosing."""
    if way in sources:
        return np.full(len(predicted), list(sources).index(way))
    expected = predicted
    if way == BY_CLASS:
        expected = np.zeros_like(predicted)
        for label in np.unique(labels):
            expected[labels == label] = predicted[labels == label].mean(axis=0)
    return expected.argmax(axis=1)


def best_way(
    sources: tuple[str, ...], predicted: Floats, true: Floats, labels: Labels
) -> tuple[str, tuple[Tried, ...]]:
    """The way to choose, and all that were tried: the best source that learned nothing of set A; from it to the source
    that is best of all, and to a choice by class or by object, where that gains `WORTH` beyond its standard error; from
    class to object for any gain beyond it."""
    means = dict(zip(sources, true.mean(axis=0), strict=True))
    way = max([name for name in sources if name in UNTAUGHT] or sources, key=means.__getitem__)

    def ious_of(other: str) -> Floats:
        return np.take_along_axis(true, choice(other, sources, predicted, labels)[:, None], axis=1)[:, 0]

    now = ious_of(way)
    tried = [_tried(name, ious_of(name), now, labels) for name in sources]
    for other in (max(sources, key=means.__getitem__), BY_CLASS, BY_OBJECT):
        one = _tried(other, ious_of(other), now, labels)
        if other not in sources:
            tried.append(one)
        if one.gain > one.gain_error + (WORTH if way in sources else 0.0):
            way, now = other, ious_of(other)
    return way, tuple(tried)


def _tried(way: str, ious: Floats, before: Floats, labels: Labels) -> Tried:
    gains = ious - before
    error = _error_over_classes(gains, labels)
    return Tried(way=way, iou=float(ious.mean()), gain=float(gains.mean()), gain_error=error)


def mask_weights(predicted: Floats) -> Floats:
    """How much each mask teaches, in [0, 1], by its predicted IoU."""
    found: Floats = ((predicted - NOTHING) / (ALL - NOTHING)).clip(0, 1)
    return found


def true_ious(maps: Maps, objects: Objects, positions: NDArray[np.int64]) -> Floats:
    """IoU at the image's pixels of grids [K] with the true masks of the objects at `positions` [K]."""
    found = np.zeros(len(positions))
    of_position = {int(position): row for row, position in enumerate(positions)}
    boxes = objects.boxes
    for image, all_mine in objects.by_image():
        mine = [position for position in all_mine if position in of_position]
        rows = [of_position[position] for position in mine]
        masks = run_lengths(maps[rows], boxes[mine], *objects.sizes[image])
        for row, position, mask in zip(rows, mine, masks, strict=True):
            truth = objects.objects[position].truth
            assert truth is not None
            found[row] = mask_iou(mask, truth)
    return found


def _error_over_classes(gains: Floats, labels: Labels) -> float:
    """Standard error of the mean gain, whose classes are drawn and not its objects."""
    sums = [float((gains[labels == label] - gains.mean()).sum()) for label in np.unique(labels)]
    return float(np.sqrt(np.square(sums).sum()) / len(gains))
