"""Masks for objects that have boxes alone, each from the source to be trusted, decided where masks are known.

`python -m training.join --run build/train --segmenter FOLDER --out joined.json [--explain] [--check] [key=value ...]`
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from model.dataclass_io import require_at_least
from model.files import command, write_whole
from training.distributed import refuse_processes
from training.join.joined import checked, config_of_run, document_with_masks, join
from training.join.report import by_class, checked_table, summary
from training.process import training_status
from training.prompt_masks import load_segmenter
from training.train import train


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status of `training_status`."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = command("training.join", __doc__)
    add = parser.add_argument
    add(
        "--run", type=Path, required=True, help="folder of a finished training, whose training set gets masks"
    )
    add("--segmenter", type=Path, required=True, help="folder of a promptable segmenter's files")
    add("--out", type=Path, required=True, help="the COCO file to write")
    add("--explain", action="store_true", help="print by class what was expected, chosen, and why")
    add(
        "--check",
        action="store_true",
        help="print how right it is on the validation set, set B's masks read for it",
    )
    add("--max-images", type=int, help="ask about the first so many images alone, to try it")
    add("changes", nargs="*", metavar="key=value", help="such as validate_transfer.groups=4")
    options = parser.parse_intermixed_args(arguments)
    again = f"go on with:\n    python -m training.join {shlex.join(arguments)}"
    with training_status(again) as status:
        refuse_processes("training.join")
        config = config_of_run(options.run, options.changes)
        if options.out.resolve() == Path(config.data.train_annotations).resolve():
            raise ValueError(f"--out is {options.out}, the run's training set itself; write to another file")
        require_at_least(1, max_images=options.max_images)
        segmenter = load_segmenter(options.segmenter, device=config.device)
        joined = join(config, segmenter, train, max_images=options.max_images)
        write_whole(options.out, json.dumps(document_with_masks(joined)))
        print(summary(joined))
        if options.explain:
            print(f"\n{by_class(joined)}")
        if options.check:
            print(f"\n{checked_table(checked(joined, max_images=options.max_images), joined.judged_labels)}")
        print(f"\n{options.out} written")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
