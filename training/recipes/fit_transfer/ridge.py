"""T of one layer in closed form: ridge regression of mask weights on detection weights, and its leave-one-class-out.

With P classes w_seg = a + W w_det, where a and W have the least sum of squared errors over the classes plus `penalty`
times the squares of W. Classes are fewer than numbers of w_det, so all is computed in the P x P kernel of the centred
rows (the dual form). What a class would be given by a fit without it follows from the fit of all by the hat matrix:
its error is that of the fit divided by 1 - h, h being the class's own weight in its own prediction (exact for ridge
regression with an intercept; Hastie et al., The Elements of Statistical Learning, eq. 7.64). Without a class of three
or more nothing is fitted anew.

Letters: P classes with mask weights, I numbers of w_det, F mask channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (*(10.0 ** (k / 2) for k in range(-6, 7)), math.inf)
"""Of the penalty, in units of the kernel's mean eigenvalue. Infinite: T is zero and all classes have the mean row."""


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """A fit: w_seg = `offset` [F] + `weight` [F, I] w_det, and `left_out` [P, F], each class's row without itself.

    `r2` is the part of the squared error of the mean row of the other classes that these rows take away, over all
    classes left out in turn: 1 would be perfect, 0 is the mean row, below 0 is worse than it.
    """

    strength: float
    r2: float
    offset: Tensor
    weight: Tensor
    left_out: Tensor


def best_ridge(w_det_PI: Tensor, w_seg_PF: Tensor, strengths: Sequence[float] = STRENGTHS) -> Ridge:
    """The fit of that strength whose classes are predicted best when they are left out; of equals the strongest.

    Raises:
        ValueError: fewer than three classes, of which none can be left out, or weights that are not finite.
    """
    pairs = w_det_PI.shape[0]
    if pairs < 3:
        raise ValueError(
            f"{pairs} classes have mask weights of their own; fitting T wants 3 or more, so that one can be left out"
        )
    if not bool(w_det_PI.isfinite().all()) or not bool(w_seg_PF.isfinite().all()):
        raise ValueError(
            "weights of classes are not finite numbers; take a checkpoint of before they were lost"
        )
    fits = [ridge(w_det_PI, w_seg_PF, strength) for strength in sorted(strengths, reverse=True)]
    return max(fits, key=lambda fit: fit.r2)


def ridge(w_det_PI: Tensor, w_seg_PF: Tensor, strength: float) -> Ridge:
    """The fit of one strength, computed in float64."""
    x, y = w_det_PI.double(), w_seg_PF.double()
    pairs = x.shape[0]
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = x - x_mean, y - y_mean
    values, vectors = torch.linalg.eigh(x @ x.t())
    values = values.clamp(min=0.0)
    penalty = strength * float(values.sum()) / (pairs - 1)
    fits = 0.0 < penalty < math.inf  # not where all classes read the same either
    dual = 1.0 / (values + penalty) if fits else torch.zeros_like(values)
    missed = penalty * dual if fits else torch.ones_like(values)
    # 1 - H of the fit with its intercept: what of each class's row the fit of all misses.
    misses = (vectors * missed) @ vectors.t() - 1.0 / pairs
    error = misses @ y / misses.diagonal()[:, None]
    weight = ((vectors * dual) @ vectors.t() @ y).t() @ x
    of_mean = y * (pairs / (pairs - 1))
    scale = float(of_mean.square().sum())
    return Ridge(
        strength=strength if fits else math.inf,
        r2=0.0 if scale == 0.0 or not fits else 1.0 - float(error.square().sum()) / scale,
        offset=(y_mean - weight @ x_mean).float(),
        weight=weight.float(),
        left_out=(y + y_mean - error).float(),
    )


def mean_of_others(values_PF: Tensor) -> Tensor:
    """For each class the mean over all others: the class-agnostic row, and bias, of a class left out."""
    return (values_PF.sum(dim=0) - values_PF) / (values_PF.shape[0] - 1)
