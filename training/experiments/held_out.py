"""Classes held out of set A: they have masks, but the mask branch is trained without them, so they stand for set B."""

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from model.classes import ClassTable
from model.files import write_whole
from training.config import TrainingConfig
from training.evaluate.truth import GroundTruth, load_ground_truth


class Fold(NamedTuple):
    """The labels and names of a group of classes that is held out, and the names of the rest of set A."""

    labels: list[int]
    names: tuple[str, ...]
    kept: list[str]

    def write_split(self, folder: Path) -> Path:
        """Write the rest of set A as a file for `data.mask_classes`, in `folder`."""
        path = folder / "mask_classes.txt"
        write_whole(path, "".join(f"{name}\n" for name in self.kept))
        return path


def truth_of_set_a(config: TrainingConfig, classes: ClassTable, **how: Any) -> GroundTruth:
    """The objects of set A in the validation set; `how`: further arguments of `load_ground_truth`."""
    only = {classes.id_of_label(label) for label in classes.set_a_labels()}
    annotations, images = Path(config.data.val_annotations), Path(config.data.val_images)
    how = {"reading": config.data.reading, **how}
    return load_ground_truth(annotations, classes, images, only_categories=only, **how)


def folds_of(config: TrainingConfig, classes: ClassTable, truth: GroundTruth) -> list[Fold]:
    """The groups held out in turn, as `config.validate_transfer` says. ValueError: see `hold_out_groups`."""
    wanted = config.validate_transfer
    counts = Counter(
        classes.label_of_id(one.category_id)
        for found in truth.objects.values()
        for one in found
        if one.mask is not None and not one.crowd
    )
    folds = []
    for group in hold_out_groups(classes, counts, groups=wanted.groups, seed=config.seed)[: wanted.folds]:
        kept = [classes.name_of_label(label) for label in classes.set_a_labels() if label not in group]
        folds.append(Fold(group, tuple(map(classes.name_of_label, group)), kept))
    return folds


def hold_out_groups(
    classes: ClassTable, objects: Mapping[int, int], *, groups: int, seed: int
) -> list[list[int]]:
    """The labels of set A dealt into groups that are alike in number of classes and of objects.

    `objects` counts the objects of each label. Classes are dealt from the most frequent to the rarest, to
    and fro; `seed` decides among equals. Raises ValueError where set A has fewer than `groups` classes with
    objects, or `groups` is below 2.
    """
    labels = [label for label in classes.set_a_labels() if objects.get(label, 0)]
    if groups < 2 or len(labels) < groups:
        raise ValueError(
            f"{groups} groups of the {len(labels)} classes of set A that have objects with masks to be judged by; "
            "there must be at least 2 groups, and a class for each"
        )
    random.Random(seed).shuffle(labels)
    labels.sort(key=lambda label: -objects[label])
    dealt: list[list[int]] = [[] for _ in range(groups)]
    for position, label in enumerate(labels):
        lap, place = divmod(position, groups)
        dealt[place if lap % 2 == 0 else groups - 1 - place].append(label)
    return [sorted(group) for group in dealt]
