"""The rule of trust: the IoU of a source's mask with the truth, told from features without the truth.

A ridge regression on each feature's deviation from its class's mean and on that mean: how right a source is lies mostly
in the class. How much either part is held towards zero is chosen by leaving classes out, and so is what the rule is
said to be worth: but for the choice of these two numbers, no prediction of an object with a true mask has seen one of
its class.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.join.features import Features, Floats

PENALTIES = (1.0, 10.0, 100.0, 1000.0, 1e5)
"""Of squared weights of standardised features, beside the squared errors summed over the objects."""
GROUPS = 20
"""Classes are left out by turns, one by one, or where there are more of them in so many groups."""
OWN_TRUTH = 10.0
"""Objects with truth of a class at which their mean error moves the class's predictions by half of it."""

Labels = NDArray[np.int64]


def turns(labels: Labels) -> Labels:
    """The turn at which each object's class is left out, [N]."""
    return np.unique(labels, return_inverse=True)[1].astype(np.int64) % GROUPS


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How features are brought to one scale, and the mean of each over a class, known classes first."""

    mean: Floats
    deviation: Floats
    class_means: dict[int, Floats]

    @classmethod
    def of(cls, values: Floats, labels: Labels) -> "Scale":
        deviation = values.std(axis=0)
        scaled = (values - values.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1.0)
        means = {int(label): scaled[labels == label].mean(axis=0) for label in np.unique(labels)}
        return cls(
            mean=values.mean(axis=0),
            deviation=np.where(deviation > 1e-9, deviation, 1.0),
            class_means=means,
        )

    def design(self, values: Floats, labels: Labels) -> Floats:
        """[N, 1 + 2 F]: one, deviations from the class's mean, the class's mean."""
        scaled = (values - self.mean) / self.deviation
        nothing = np.zeros(values.shape[1])
        means = np.stack([self.class_means.get(int(label), nothing) for label in labels])
        return np.concatenate([np.ones((len(values), 1)), scaled - means, means], axis=1)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Predicts the IoU of each of S sources."""

    sources: tuple[str, ...]
    names: tuple[str, ...]
    """Of the features."""
    scale: Scale
    weights: Floats
    """[1 + 2 F, S]."""
    offsets: dict[int, Floats]
    """Of classes with truth: what is added to the predictions, [S]."""

    def predicted(self, features: Features, labels: Labels) -> Floats:
        """The IoU [N, S] to be expected of each source's mask, in [0, 1]."""
        nothing = np.zeros(len(self.sources))
        own = np.stack([self.offsets.get(int(label), nothing) for label in labels])
        found = self.scale.design(features.values, labels) @ self.weights + own
        clipped: Floats = found.clip(0, 1)
        return clipped

    def reasons(self, features: Features, labels: Labels, of: str, most: int = 3) -> list[tuple[str, float]]:
        """The features that move a source's mean prediction over these objects furthest from the usual, with by how
        much."""
        design = self.scale.design(features.values, labels).mean(axis=0)
        moved = design * self.weights[:, self.sources.index(of)]
        count = len(self.names)
        both = moved[1 : 1 + count] + moved[1 + count :]
        order = np.argsort(-np.abs(both), kind="stable")[:most]
        return [(self.names[position], float(both[position])) for position in order]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A rule, and what it would have said of each object it was fitted to had it known no truth of its class."""

    rule: Rule
    left_out: Floats
    """[N, S]."""
    penalties: tuple[float, float]
    """Of the deviations within classes, and of the classes' means."""


def fit_rule(features: Features, labels: Labels, ious: Mapping[str, Floats], scale: Scale) -> Fitted:
    """Fit to the true IoU [N] of each source for the objects of `features`.

    `scale` is that of all objects, those without truth too. The penalties are those with the least squared error over
    the classes left out.
    """
    design, goal = scale.design(features.values, labels), np.stack(list(ious.values()), axis=1)
    turn = turns(labels)
    best: tuple[float, tuple[float, float], Floats] | None = None
    for within in PENALTIES:
        for between in PENALTIES:
            left_out = _left_out(design, goal, turn, (within, between)).clip(0, 1)
            error = float(np.square(left_out - goal).mean())
            if best is None or error < best[0] - 1e-12:
                best = error, (within, between), left_out
    assert best is not None
    weights = _solved(*_sums(design, goal), best[1])
    missed = goal - design @ weights
    offsets = {
        int(label): missed[labels == label].sum(axis=0) / ((labels == label).sum() + OWN_TRUTH)
        for label in np.unique(labels)
    }
    rule = Rule(sources=tuple(ious), names=features.names, scale=scale, weights=weights, offsets=offsets)
    return Fitted(rule=rule, left_out=best[2], penalties=best[1])


def _left_out(design: Floats, goal: Floats, turn: Labels, penalties: tuple[float, float]) -> Floats:
    """Predictions [N, S] of each object by weights fitted to the objects of all other turns."""
    numbers = np.unique(turn)
    sums = [_sums(design[turn == number], goal[turn == number]) for number in numbers]
    nothing = np.zeros((design.shape[1], design.shape[1])), np.zeros((design.shape[1], goal.shape[1]))
    found = np.zeros_like(goal)
    for number in numbers:
        others = [one for other, one in zip(numbers, sums, strict=True) if other != number] or [nothing]
        gram = np.stack([of_others for of_others, _ in others]).sum(axis=0)
        moment = np.stack([of_others for _, of_others in others]).sum(axis=0)
        found[turn == number] = design[turn == number] @ _solved(gram, moment, penalties)
    return found


def _sums(design: Floats, goal: Floats) -> tuple[Floats, Floats]:
    return design.T @ design, design.T @ goal


def _solved(gram: Floats, moment: Floats, penalties: tuple[float, float]) -> Floats:
    count = (len(gram) - 1) // 2
    penalty = np.diag([1e-6] + [penalties[0]] * count + [penalties[1]] * count)
    return np.linalg.solve(gram + penalty, moment).astype(np.float64)
