"""The whole recipe: the fit that predicts left-out classes of a checkpoint best, their masks judged, the new file."""

import math
from pathlib import Path
from typing import Any

from training.recipes.convert_torchvision import write_converted
from training.recipes.fit_transfer.fitted import INPUTS, Input, best_fits, read_finished, with_transfer
from training.recipes.fit_transfer.judged import judge_left_out, truth_of
from training.recipes.fit_transfer.report import as_plain, report_of_fits, report_of_masks


def fit_transfer(
    checkpoint: Path,
    out: Path,
    *,
    given: Input | None = None,
    val_images: Path | None = None,
    val_annotations: Path | None = None,
    max_images: int | None = None,
) -> dict[str, Any]:
    """Write the network of `checkpoint` with a fitted T to `out`, and say how it was chosen; the figures.

    Args:
        given: what T reads; None: what predicts left-out classes best.
        val_images, val_annotations: where masks of left-out classes are judged; where T's are worse than those of the
            mean row by more than chance, T is zero in what is written.
        max_images: judge by the first so many.

    Raises:
        ValueError: see `read_finished`, `best_ridge`, `load_ground_truth`; `out` is the checkpoint itself.
    """
    if out.resolve() == checkpoint.resolve():
        raise ValueError(f"--out {out} is the checkpoint itself; give another path")
    finished = read_finished(checkpoint)
    fits = best_fits(finished, INPUTS if given is None else (given,))
    chosen = max(fits, key=lambda name: fits[name].r2)
    fit = fits[chosen]
    print(report_of_fits(fits, chosen))
    judged = None
    if val_annotations is not None:
        assert val_images is not None
        truth = truth_of(finished, val_annotations, val_images, max_images=max_images)
        judged = judge_left_out(finished, fit, truth, val_images)
        print(f"\n{report_of_masks(judged)}")
        if judged.better < 0:
            fit = best_fits(finished, (chosen,), (math.inf,))[chosen]
    network, config = with_transfer(finished, chosen, fit)
    write_converted(
        out, network, config, finished.classes, origin=f"{checkpoint.name}, T fitted on its classes"
    )
    return as_plain(fits, fit, chosen, judged)
