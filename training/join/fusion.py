"""Fused masks: each cell's probability told from the logits of all sources by a logistic regression (stacking).

What a source's logit counts rises with the IoU that the rule predicts for it. Fitted to the true masks of set A, with
the classes left out by turns as in `training.join.rule`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.join.features import Floats
from training.join.grids import SIDE, Maps, logits_of
from training.join.rule import Labels, turns
from training.join.sources import Said

CELLS = 64
"""Of each object's grid, drawn once for all, that are learned from."""
PENALTY = 1.0
"""Of squared weights, beside the summed log losses of all drawn cells."""
STEPS = 12
"""Of Newton's method; it is at rest after half of them."""
TOGETHER = 500
"""Objects whose logits are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """The sources whose logits are joined, and the weights of `_inputs`."""

    sources: tuple[str, ...]
    usual: Floats
    """[S], the mean IoU predicted for each."""
    weights: Floats

    def maps(self, said: Mapping[str, Said], predicted: Floats) -> Maps:
        """Fused grids of N objects; `predicted` [N, S], the IoU to be expected of each source."""
        trust = predicted - self.usual
        found = np.zeros((len(trust), SIDE, SIDE), np.uint8)
        for start in range(0, len(trust), TOGETHER):
            some = slice(start, start + TOGETHER)
            logits = np.stack(
                [logits_of(said[name].maps[some]).reshape(-1, SIDE * SIDE) for name in self.sources], axis=-1
            )
            joined = _inputs(logits, trust[some]) @ self.weights
            found[some] = np.rint(255 / (1 + np.exp(-joined))).reshape(-1, SIDE, SIDE)
        return found


def fit_fusion(
    said: Mapping[str, Said], sources: Sequence[str], predicted: Floats, truth: Maps, labels: Labels
) -> tuple[Fusion, Maps]:
    """Fit to true masks; the fusion, and each object's fused grid by weights that have seen no mask of its class.

    Args:
        said: of N objects with truth.
        sources: those to be joined.
        predicted: [N, S], the IoU to be expected of each, their class left out.
        truth: grids of the true masks.
        labels: [N].
    """
    cells = np.random.default_rng(0).choice(SIDE * SIDE, CELLS, replace=False)
    drawn = [logits_of(said[name].maps.reshape(-1, SIDE * SIDE)[:, cells]) for name in sources]
    usual = predicted.mean(axis=0)
    inputs = _inputs(np.stack(drawn, axis=-1), predicted - usual)
    goal = truth.reshape(-1, SIDE * SIDE)[:, cells] / 255.0
    fused = np.zeros_like(truth)
    turn = turns(labels)
    start = _fitted(inputs, goal, np.zeros(inputs.shape[-1]))
    for number in np.unique(turn):
        mine = turn == number
        weights = _fitted(inputs[~mine], goal[~mine], start) if (~mine).any() else start * 0
        one = Fusion(sources=tuple(sources), usual=usual, weights=weights)
        fused[mine] = one.maps(
            {name: Said(said[name].maps[mine], said[name].quality[mine]) for name in sources}, predicted[mine]
        )
    return Fusion(sources=tuple(sources), usual=usual, weights=start), fused


def _inputs(logits: NDArray[np.floating[Any]], trust: Floats) -> Floats:
    """Logits [N, P, S] and trust [N, S] -> [N, P, 1 + 2 S]: one, the logits, and each times its trust."""
    ones = np.ones((*logits.shape[:2], 1))
    inputs: Floats = np.concatenate([ones, logits, logits * trust[:, None]], axis=-1, dtype=np.float64)
    return inputs


def _fitted(inputs: Floats, goal: Floats, start: Floats) -> Floats:
    """Weights of the least penalised log loss, by Newton's method."""
    rows, wanted, weights = inputs.reshape(-1, inputs.shape[-1]), goal.ravel(), start
    for _ in range(STEPS):
        probabilities = 1 / (1 + np.exp(-(rows @ weights).clip(-30, 30)))
        slope = rows.T @ (probabilities - wanted) + PENALTY * weights
        bend = (rows * (probabilities * (1 - probabilities))[:, None]).T @ rows
        step = np.linalg.solve(bend + PENALTY * np.eye(len(weights)), slope)
        weights = weights - step
        if np.abs(step).max() < 1e-6:
            break
    return weights
