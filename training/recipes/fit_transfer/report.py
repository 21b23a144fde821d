"""What is said of a fit of T: of the weights, of the masks where they were judged, and whether T is worth it."""

import math
from collections.abc import Mapping
from typing import Any

from training.evaluate.report import aligned, percent
from training.recipes.fit_transfer.fitted import Input
from training.recipes.fit_transfer.judged import STANDARD_ERRORS, Judged
from training.recipes.fit_transfer.ridge import Ridge

ROWS = ("own", "left_out", "mean", "filled")
"""What masks are judged by, as in `ClassMasks`."""


def report_of_fits(fits: Mapping[Input, Ridge], chosen: Input) -> str:
    """A line for each input of T, the chosen one marked."""
    rows = [["T reads", "lambda", "left-out R2 of mask weights"]]
    rows += [
        [f"{name}{' *' if name == chosen else ''}", strength(fit), percent(fit.r2)]
        for name, fit in fits.items()
    ]
    return f"{aligned(rows)}\n{verdict_of_weights(fits[chosen])}"


def strength(fit: Ridge) -> str:
    """The penalty in units of the kernel's mean eigenvalue, or "infinite"."""
    return "infinite" if math.isinf(fit.strength) else f"{fit.strength:.3g}"


def verdict_of_weights(fit: Ridge) -> str:
    """Whether T says more of a left-out class's mask weights than the mean of the others does."""
    if math.isinf(fit.strength):
        return (
            "T predicts the mask weights of no left-out class better than the mean of the others does: lambda is "
            "infinite, T is zero, and new classes get the mean row"
        )
    return (
        f"T predicts the mask weights of left-out classes better than the mean row does: of its squared error "
        f"{percent(fit.r2)} % go away"
    )


def report_of_masks(judged: Judged) -> str:
    """A line for each class, the mean over them, and which row to trust."""
    rows = [["class", "objects", "own row", "T, left out", "mean row", "box filled", "T - mean"]]
    rows += [
        [
            one.name,
            str(one.objects),
            *map(percent, (one.own, one.left_out, one.mean, one.filled)),
            f"{100 * (one.left_out - one.mean):+.1f}",
        ]
        for one in judged.classes
    ]
    gain, _ = judged.gains
    means = [percent(judged.over(row)) for row in ROWS]
    objects = sum(one.objects for one in judged.classes)
    rows.append(["mean over classes", str(objects), *means, f"{100 * gain:+.1f}"])
    return f"mask IoU on ground-truth boxes, in percent\n{aligned(rows)}\n{verdict_of_masks(judged)}"


def verdict_of_masks(judged: Judged) -> str:
    """Whether masks of left-out classes are better by T than by the mean row, and by how sure a margin."""
    gain, error = judged.gains
    words = {
        1: "T's masks of left-out classes are better than those of the mean row",
        0: "T's masks of left-out classes are not told apart from those of the mean row",
        -1: "T's masks of left-out classes are worse than those of the mean row, which are written",
    }[judged.better]
    if judged.over("left_out") < judged.over("filled"):
        words += " (and worse than filled boxes)"
    return (
        f"{words}: {100 * gain:+.1f} +- {100 * error:.1f} points ({STANDARD_ERRORS:g} standard errors decide)"
    )


def as_plain(
    fits: Mapping[Input, Ridge], written: Ridge, chosen: Input, judged: Judged | None
) -> dict[str, Any]:
    """All figures for JSON, an infinite lambda as None; classes in the order of their labels."""
    of_fits = {
        name: {"lambda": None if math.isinf(fit.strength) else fit.strength, "left_out_r2": fit.r2}
        for name, fit in fits.items()
    }
    plain: dict[str, Any] = {
        "fits": of_fits,
        "input": chosen,
        "lambda": None if math.isinf(written.strength) else written.strength,
    }
    if judged is not None:
        gain, error = judged.gains
        plain |= {
            "mask_iou": {row: judged.over(row) for row in ROWS},
            "gain": gain,
            "gain_error": error if math.isfinite(error) else None,
            "classes": [vars(one) for one in judged.classes],
        }
    return plain
