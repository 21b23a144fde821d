"""Draws a data set: `python -m training.drawn shapes --out build/shapes --train 4000 --val 200 --seed 0`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model.dataclass_io import require_at_least
from model.files import command, exit_status
from training.drawn.figures import FIGURES
from training.drawn.shapes import SHAPES
from training.drawn.write import write_set

KINDS = {
    "shapes": (SHAPES, "the default data set: 48 classes, half of them with masks"),
    "figures": (FIGURES, "stick figures with keypoints"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where the data set lies there in the end."""
    parser = command("training.drawn", "Draw a data set and write it as COCO files.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, (kind, about) in KINDS.items():
        defaults = kind.defaults
        of_kind = kinds.add_parser(
            name, help=about, description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        of_kind.add_argument("--out", type=Path, default=Path("build", name), help="folder to write")
        of_kind.add_argument("--train", type=int, default=defaults.train, help="training images")
        of_kind.add_argument("--val", type=int, default=defaults.val, help="validation images")
        of_kind.add_argument("--seed", type=int, default=defaults.seed, help="same seed, same pixels")
        of_kind.add_argument("--size", type=int, default=defaults.size, help="side of an image")
        of_kind.add_argument("--workers", type=int, help="processes; None: one per processor")
    options = parser.parse_args(arguments)
    with exit_status() as status:
        require_at_least(1, workers=options.workers)
        kind, _ = KINDS[options.kind]
        config = replace(
            kind.defaults, train=options.train, val=options.val, seed=options.seed, size=options.size
        )
        drawn = write_set(kind, options.out, config, workers=options.workers)
        print(
            f"{options.out}: {'written' if drawn else 'already drawn from the same settings, nothing to do'}"
        )
    return status.code


if __name__ == "__main__":
    sys.exit(main())
