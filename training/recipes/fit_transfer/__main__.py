"""A finished class-specific Mask R-CNN gets T in closed form, so that boxes alone can add classes to it (Sec. 3.2).

    python -m training.recipes.fit_transfer build/converted/checkpoint.pt --out build/fitted/checkpoint.pt

Each of its classes is a pair (w_det, w_seg); T is a ridge regression on these pairs, its strength and its input being
those that predict classes left out best. No image is needed and nothing is trained. Boxes and masks of the network's
classes stay what they were. With a validation set the masks of left-out classes are judged too.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.files import command, exit_status
from training.distributed import refuse_processes
from training.experiments.variants import write_json
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where the checkpoint was written, 2 where a mistake was named."""
    parser = command("training.recipes.fit_transfer", __doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="of a class-specific network, such as training.recipes.convert writes")
    add("--out", type=Path, default=Path("build/fitted/checkpoint.pt"), help="(default: %(default)s)")
    add("--input", choices=INPUTS, help="what T reads (default: what predicts left-out classes best)")
    add("--val-images", type=Path, help="to judge masks of left-out classes by")
    add("--val-annotations", type=Path, help="to judge masks of left-out classes by")
    add("--max-images", type=int, help="judge by the first so many validation images")
    options = parser.parse_args(arguments)
    with exit_status() as status:
        refuse_processes("training.recipes.fit_transfer")
        if (options.val_images is None) != (options.val_annotations is None):
            raise ValueError("--val-images and --val-annotations go together; give both, or neither")
        figures = fit_transfer(
            options.checkpoint,
            options.out,
            given=options.input,
            val_images=options.val_images,
            val_annotations=options.val_annotations,
            max_images=options.max_images,
        )
        write_json(options.out.with_suffix(".json"), figures)
        print(f"\n{options.out} written; add classes with boxes alone by training.recipes.grow {options.out}")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
