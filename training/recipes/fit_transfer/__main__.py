"""A finished class-specific Mask R-CNN gets T in closed form, so that boxes alone can add classes to it (Sec. 3.2).

    python -m training.recipes.fit_transfer build/converted/checkpoint.pt --out build/fitted/checkpoint.pt

Each of its classes is a pair (w_det, w_seg); T is a ridge regression on these pairs, its strength and its input being
those that predict classes left out best. No image is needed and nothing is trained. Boxes and masks of the network's
classes stay what they were. With a validation set the masks of left-out classes are judged too.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from model.files import command, exit_status
from training.distributed import refuse_processes
from training.experiments.variants import write_json
from training.recipes.fit_transfer.fitted import INPUTS
from training.recipes.fit_transfer.recipe import fit_transfer


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
