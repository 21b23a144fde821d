"""The look at the start of every training: a few lines and the warnings, at little cost."""

import sys

from training.config import TrainingConfig
from training.data.coco import CocoDataset, needs_masks
from training.look.doubts import doubts_between, doubts_of, twice
from training.look.facts import Facts, class_line, sizes
from training.look.pictures import doubtful_pictures, sampled
from training.look.twins import paths_of

DECODED = 12
"""Pictures of a set that are decoded for it."""


def look_before_training(config: TrainingConfig, train: CocoDataset, val: CocoDataset | None) -> None:
    """Print what the sets hold, and on standard error what is surely wrong in them.

    Nothing is drawn from the generators of the training. The reports of the sets are printed where they are loaded.
    """
    facts = Facts.of(train, "training set")
    for line in (*sizes(facts), class_line(facts)):
        print(f"  {line}")
    for words in doubts(config, train, val, decoded=DECODED, all_images=False):
        print(f"warning: {words}", file=sys.stderr)


def doubts(
    config: TrainingConfig,
    train: CocoDataset,
    val: CocoDataset | None,
    *,
    decoded: int,
    open_images: bool = True,
    all_images: bool = True,
) -> list[str]:
    """All warnings of two sets; `val` None: there is no validation set.

    Args:
        decoded: pictures of each set to decode.
        open_images: no file of an image is opened without.
        all_images: all files of the same length are compared, not those of the same name alone.
    """
    sets = [(Facts.of(train, "training set"), train)]
    if val is not None:
        sets.append((Facts.of(val, "validation set"), val))
    said = []
    for facts, data in sets:
        said += doubts_of(facts, config.seed, learns_masks=data is train and needs_masks(config))
    if val is not None:
        said += doubts_between(sets[0][0], sets[1][0])
    paths = paths_of(train.packed, config.data.train_images)
    others = [] if val is None else paths_of(val.packed, config.data.val_images)
    said += twice(paths, others, open_images=open_images, all_images=all_images)
    if open_images:
        for facts, data in sets:
            said += doubtful_pictures(facts.name, data, sampled(decoded, len(data), config.seed))
    return said
