"""What a join tells: by class what was expected of each source, what was chosen and why, and how right it was."""

from collections import Counter
from collections.abc import Collection
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from training.evaluate.report import aligned, percent
from training.join.features import Features, Floats
from training.join.joined import Checked, Join
from training.join.rule import Labels
from training.join.trust import choice, mask_weights

BINS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of predicted IoU, by which calibration is told."""


def summary(joined: Join) -> str:
    """What the rule was fitted to, what each way to choose would have given on set A, and what was chosen of it."""
    evidence, trust = joined.evidence, joined.trust
    rows = [["way to choose", "mask IoU", "gain", "standard error"]]
    for one in trust.tried:
        error = f"{100 * one.gain_error:.2f}" if one.gain_error else ""
        rows.append([one.way, percent(one.iou), f"{100 * one.gain:+.2f}", error])
    left_out = evidence.fitted.left_out
    taken = trust.chosen(joined.judged, joined.objects.labels)[~evidence.known]
    counts = Counter(joined.judged.sources[position] for position in taken)
    weights = mask_weights(
        np.take_along_axis(joined.judged.predicted[~evidence.known], taken[:, None], axis=1)[:, 0]
    )
    listed = ", ".join(f"{count} from {name}" for name, count in counts.most_common())
    return "\n\n".join(
        [
            f"judged by {evidence.known.sum()} objects of set A, each without the truth of its class",
            aligned(rows),
            f"chosen: {trust.way}; predicted against true IoU: {_fit(left_out, evidence.true)}",
            f"{len(taken)} objects without a mask: {listed or 'none'}; {int((weights == 0).sum())} of them teach "
            f"nothing, {int((weights == 1).sum())} like true masks",
        ]
    )


def by_class(joined: Join) -> str:
    """The table of `--explain`: for each class and each source the predicted IoU, of set A the true one behind it."""
    objects, judged, evidence = joined.objects, joined.judged, joined.evidence
    labels, known = objects.labels, evidence.known
    predicted, true = judged.predicted.copy(), np.full_like(judged.predicted, np.nan)
    predicted[known], true[known] = evidence.fitted.left_out, evidence.true
    as_unseen = choice(joined.trust.way, judged.sources, predicted, labels)
    taken = np.where(known, as_unseen, joined.trust.chosen(judged, labels))
    rows = [["class", "has", "objects", *judged.sources, "taken", "because"]]
    for label in np.unique(labels).tolist():
        for has, those in (("masks", known), ("boxes", ~known)):
            mine = (labels == label) & those
            if mine.any():
                shown = _expected(predicted[mine].mean(axis=0), true[mine].mean(axis=0))
                source, share = Counter(taken[mine].tolist()).most_common(1)[0]
                name = judged.sources[source]
                words = name if share == mine.sum() else f"{name} ({100 * share / mine.sum():.0f} %)"
                about = [joined.classes.name_of_label(label), has, str(mine.sum())]
                rows.append([*about, *shown, words, _because(joined, mine, name)])
    return (
        f"{aligned(rows)}\n\npredicted mask IoU, in brackets the true one; objects with masks are predicted without "
        "the truth of their class"
    )


def _expected(predicted: Floats, true: Floats) -> list[str]:
    return [
        percent(expected) + ("" if np.isnan(seen) else f" ({percent(seen)})")
        for expected, seen in zip(predicted.tolist(), true.tolist(), strict=True)
    ]


def checked_table(found: Checked, judged: Collection[int]) -> str:
    """Of an evaluation: the mean true IoU of each source and of the join on set A and on set B, and how right the rule
    was; `judged`: the labels that it was fitted to."""
    sources = found.masks.judged.sources
    labels = found.objects.labels
    position = np.array([sources.index(name) for name in found.masks.chosen])
    joined = np.take_along_axis(found.true, position[:, None], axis=1)[:, 0]
    of_a = np.isin(labels, list(judged))
    rows = [["true boxes of", "objects", *sources, "joined masks", "best of all"]]
    lines = []
    for name, mine in (("set A", of_a), ("set B", ~of_a)):
        if not mine.any():
            continue
        means = [*found.true[mine].mean(axis=0), joined[mine].mean(), found.true[mine].max(axis=1).mean()]
        rows.append([name, str(mine.sum()), *map(percent, means)])
        fit = _fit(found.masks.quality[mine, None], joined[mine, None])
        classwise = _class_means(found.masks.quality[mine], joined[mine], labels[mine])
        lines.append(f"{name}: predicted against true IoU {fit}; over class means {classwise}")
        lines.append(_calibration(found.masks.quality[mine], joined[mine]))
    return "\n\n".join([aligned(rows), *lines])


def _because(joined: Join, mine: NDArray[np.bool_], name: str) -> str:
    features = joined.judged.features
    some = Features(names=features.names, values=features.values[mine])
    reasons = joined.trust.rule.reasons(some, joined.objects.labels[mine], name)
    return ", ".join(f"{what} {100 * moved:+.0f}" for what, moved in reasons)


def _fit(predicted: Floats, true: Floats) -> str:
    error = float(np.abs(predicted - true).mean())
    bias = float((predicted - true).mean())
    alike = _correlation(predicted.ravel(), true.ravel())
    return f"correlation {alike}, mean error {percent(error)}, bias {100 * bias:+.1f}"


def _class_means(predicted: Floats, true: Floats, labels: Labels) -> str:
    of_class = [(predicted[labels == one].mean(), true[labels == one].mean()) for one in np.unique(labels)]
    means = np.array(of_class)
    return f"correlation {_correlation(means[:, 0], means[:, 1])}, mean error " + percent(
        float(np.abs(means[:, 0] - means[:, 1]).mean())
    )


def _correlation(one: Floats, other: Floats) -> str:
    if len(one) < 2 or one.std() < 1e-9 or other.std() < 1e-9:
        return "none"
    return f"{np.corrcoef(one, other)[0, 1]:.2f}"


def _calibration(predicted: Floats, true: Floats) -> str:
    rows = [["predicted IoU", "objects", "predicted", "true"]]
    for low, high in pairwise(BINS):
        mine = (predicted >= low) & ((predicted < high) | (high == 1.0))
        if mine.any():
            shown = [percent(float(predicted[mine].mean())), percent(float(true[mine].mean()))]
            rows.append([f"{low:.1f} to {high:.1f}", str(mine.sum()), *shown])
    return aligned(rows)
