"""`python -m training.datasets check [--config FILE] [key=value ...]`: what a training would load, looked at."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model.files import command, exit_status
from model.keypoints.layout import keypoint_labels
from training.config import DEFAULT_CONFIG, TrainingConfig, changed, load_config
from training.data.coco import CocoDataset, look_at_validation_set, needs_masks, training_set
from training.data.sides import hint
from training.look.facts import Facts, class_table_lines, sizes
from training.look.facts import counted as noun
from training.look.sheet import write_sheet
from training.look.short import doubts

DECODED = 50
"""Pictures of a set that are decoded to see how bright they are."""


def check(
    config: TrainingConfig,
    *,
    sheet: Path | None = None,
    decode: bool = False,
    open_images: bool = True,
) -> list[str]:
    """Print what a training of `config` would load; the warnings.

    Args:
        sheet: where to write a picture of it.
        decode: decode every image.
        open_images: without, no file of an image is opened but those of which the annotations do not state the size.

    Raises:
        ValueError: what a training would be refused for; with `decode` images that do not decode.
    """
    if not open_images and (decode or sheet is not None):
        raise ValueError(
            "--no-images opens no image, and --sheet and --decode need them: leave out one or the other"
        )
    reading = replace(config.data.reading, open_images=open_images)
    train = training_set(config, reading)
    print(train.report)
    _tell(train, "training set")
    if config.model.transfer.kind == "class_specific" and needs_masks(config):
        train.classes.require_masks()
    keypoint_labels(config.model.keypoints, train.classes)
    val = look_at_validation_set(config, train.classes, reading)
    if val is not None:
        _tell(val, "validation set")
    if decode:
        for data in (train, val):
            if data is not None:
                data.decode_all(range(len(data)))
    said = doubts(config, train, val, decoded=DECODED, open_images=open_images)
    if sided := hint(config.augment, train.classes):
        said.append(sided.removeprefix("hint: "))
    for words in said:
        print(f"warning: {words}")
    print(noun(len(said), "warning") if said else "nothing to warn of")
    if sheet is not None:
        print(f"{sheet}: {write_sheet(sheet, train)} images as they are trained on")
    return said


def _tell(data: CocoDataset, name: str) -> None:
    facts = Facts.of(data, name)
    for line in (*sizes(facts), *class_table_lines(facts)):
        print(f"  {line}")


def main(arguments: Sequence[str]) -> int:
    """The command line. 0: it can be trained on, with warnings or without; 2: it cannot, and why."""
    parser = command("training.datasets check", "Say what a training would load, and what is wrong in it.")
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        help="TOML file, as of a training (default: %(default)s)",
    )
    add("--mask-classes", metavar="WHICH", help="the same as data.mask_classes=...")
    add("--sheet", type=Path, metavar="PNG", help="draw some images with their objects")
    add("--decode", action="store_true", help="decode every image, not only a sample")
    add("--no-images", action="store_true", help="open no image: the annotations alone")
    add("changes", nargs="*", metavar="key=value", help="such as data.train_annotations=train.json")
    options = parser.parse_intermixed_args(arguments)
    with exit_status(interrupted="stopped") as status:
        config = load_config(options.config, options.changes)
        if options.mask_classes is not None:
            config = changed(config, {"data.mask_classes": options.mask_classes})
        check(config, sheet=options.sheet, decode=options.decode, open_images=not options.no_images)
    return status.code
