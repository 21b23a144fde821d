"""Masks for the boxes of a COCO file, from a promptable segmenter: `python -m training.prompt_masks --help`.

    python -m training.prompt_masks --images photos --annotations boxes.json --segmenter mobile_sam --out masks.json

Objects that have a mask keep it, unless `--all`. A run that was stopped goes on where it was when it is started again.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from model.files import command, exit_status, first_few, remove_unfinished, write_whole
from training.progress import duration
from training.prompt_masks.journal import journal_of, opened
from training.prompt_masks.load import load_segmenter
from training.prompt_masks.objects import Wanted, digest_of, wanted_masks, with_masks
from training.prompt_masks.run import Outcome, prompt_all, split_threads

NAMED = 5
"""Objects and images that a message names."""


def prompt_masks(
    images: Path,
    annotations: Path,
    segmenter: Path,
    out: Path,
    *,
    every: bool = False,
    device: str = "auto",
    max_images: int | None = None,
) -> Outcome:
    """Write `annotations` with masks for its boxes to `out`; what came of it.

    Args:
        every: make masks of objects that have one, too, and drop those.
        max_images: make masks for so many images, the first that have objects without one.

    Raises:
        ValueError: as `wanted_masks`, `load_segmenter`, `opened` and `prompt_all`; `out` is the input.
    """
    if out.resolve() == annotations.resolve():
        raise ValueError(f"--out {out} is the input; expected another file")
    if max_images is not None and max_images < 1:
        raise ValueError(f"--max-images {max_images}; expected 1 or more")
    digest = digest_of(annotations)
    wanted = wanted_masks(annotations, images, every=every)
    wanted = replace(wanted, pictures=wanted.pictures[:max_images])
    _tell(wanted, annotations)
    at_once, threads = split_threads(torch.get_num_threads())
    network = load_segmenter(segmenter, device=device, threads=threads)
    journal_path = journal_of(out)
    header = {"segmenter": network.name, "annotations": digest, "--all": every}
    started = time.monotonic()
    with opened(journal_path, header) as journal:
        remove_unfinished(out)
        if journal.done:
            print(f"{journal_path}: {len(journal.done)} images are done already")
        outcome = prompt_all(network, wanted.pictures, images, journal, at_once=at_once)
        of_this_run = {picture.row for picture in wanted.pictures}
        masks = {
            place: mask
            for row, some in journal.done.items()
            if row in of_this_run
            for place, mask in some.items()
        }
        lost = [picture for picture in wanted.pictures if picture.row in outcome.broken]
        without = {place for picture in lost for place in picture.objects} if every else set()
        begun = time.perf_counter()
        document = with_masks(annotations, digest, masks, without)
        write_whole(out, json.dumps(document) + "\n")
        outcome.spend({"write": time.perf_counter() - begun})
        journal_path.unlink()
    empty = [document["annotations"][place]["id"] for place, mask in masks.items() if mask.runs is None]
    print(f"{out}: {len(masks) - len(empty)} masks made in {duration(time.monotonic() - started)}")
    if empty:
        named = first_few([str(one) for one in sorted(empty)], NAMED)
        print(
            f"  {len(empty)} of no pixel inside the box; their objects keep the box alone: annotations {named}"
        )
    parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in outcome.seconds.items())
    print(f"  seconds by part, over {at_once} images at once: {parts}")
    return outcome


def _tell(wanted: Wanted, annotations: Path) -> None:
    print(
        f"{annotations}: {wanted.images} images; {wanted.objects} objects of {len(wanted.pictures)} images get masks, "
        f"{wanted.kept} keep theirs, {wanted.crowds} crowd regions stay as they are"
    )
    for finding in wanted.findings:
        print(f"  {finding}")


def main(arguments: list[str] | None = None) -> int:
    """The command line. 0: done; 1: done, but for images that could not be read; 2: a mistake; 130: Ctrl-C."""
    parser = command("training.prompt_masks", __doc__)
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="FOLDER", help="of the images")
    add("--annotations", type=Path, required=True, metavar="BOXES.JSON", help="COCO file with boxes")
    add(
        "--segmenter",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="of the network (docs/prompt_masks.md)",
    )
    add("--out", type=Path, required=True, metavar="MASKS.JSON", help="the same file with masks")
    add("--all", action="store_true", help="masks of all objects; those that are there are dropped")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add("--max-images", type=int, metavar="N", help="masks for no more than N images")
    options = parser.parse_args(arguments)
    with exit_status(interrupted="stopped; start it again and it goes on from here") as status:
        outcome = prompt_masks(
            options.images,
            options.annotations,
            options.segmenter,
            options.out,
            every=options.all,
            device=options.device,
            max_images=options.max_images,
        )
        if outcome.broken:
            named = first_few(list(outcome.broken.values()), NAMED, separator="\n  ")
            print(
                f"{len(outcome.broken)} images could not be read and have no masks; run it again on {options.out} once "
                f"they are mended:\n  {named}",
                file=sys.stderr,
            )
            status.code = 1
    return status.code


if __name__ == "__main__":
    sys.exit(main())
