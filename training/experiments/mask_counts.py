"""How many masks of its own make a class one of set A? Measured by taking masks away.

The classes are dealt into as many groups as there are counts; in each round every group keeps another number of masks a
class, the mask branch is trained with the masks that are left on a finished detector, and its masks are judged on the
true boxes of the validation set. After all rounds every class was trained with every count, beside the same mixture of
others. Without masks of its own a class has what the transfer gives it; with all of them, what can be had.

`python -m training.experiments.mask_counts --checkpoint build/train/checkpoint.pt --counts 0,1,3,10,30`
"""

import itertools
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint import load_checkpoint, load_network
from model.classes import ClassTable
from model.dataclass_io import to_plain
from model.files import command, write_whole
from training.config import TrainingConfig, changed, config_from_dict
from training.data.annotations import read_annotations
from training.data.splits import AUTO
from training.datasets.thin import true_masks, with_counts
from training.distributed import chosen_device, refuse_processes
from training.evaluate.predictions import predict
from training.evaluate.report import aligned, percent
from training.evaluate.truth import load_ground_truth
from training.experiments.held_out import hold_out_groups
from training.experiments.variants import (
    Train,
    finished_detector,
    mask_branch_alone,
    stamp_of,
    train_in,
    write_json,
)
from training.process import training_status
from training.train import train

COUNTS = (0, 1, 3, 10, 30)
HALF = 0.5
"""Of the way from no mask to all: from there on a class is nearer to those that have all."""


@dataclass(frozen=True, kw_only=True)
class ClassAtCount:
    """A class in one round: the masks that it kept (None: all), those that it has, and the mean IoU of its objects."""

    name: str
    kept: int | None
    masks: int
    objects: int
    iou: float


@dataclass(frozen=True, kw_only=True)
class AtCount:
    """The classes that were trained with so many masks: their mean IoU, and what the same classes have without a mask
    of their own and with all."""

    kept: int | None
    classes: int
    iou: float
    without: float
    with_all: float

    @property
    def way(self) -> float:
        """How much of the way from no mask to all, 0 to 1 where masks help at all."""
        return (self.iou - self.without) / max(self.with_all - self.without, 1e-9)


def rounds_of(
    classes: ClassTable, masks: Counter[int], counts: Sequence[int], seed: int
) -> Iterator[dict[int, int]]:
    """Of each round, how many masks a label keeps; labels that are not named keep all.

    `masks` counts the true masks of each label. ValueError: see `checked_counts` and `hold_out_groups`.
    """
    steps: list[int | None] = [*checked_counts(counts), None]
    groups = hold_out_groups(classes, masks, groups=len(steps), seed=seed)
    for shift in range(len(steps)):
        kept = [(group, steps[(place + shift) % len(steps)]) for place, group in enumerate(groups)]
        yield {label: count for group, count in kept if count is not None for label in group}


def checked_counts(counts: Sequence[int]) -> Sequence[int]:
    """ValueError where they do not begin with 0 or do not rise."""
    if not counts or counts[0] != 0 or any(a >= b for a, b in itertools.pairwise(counts)):
        raise ValueError(f"the counts are {', '.join(map(str, counts))}; they begin with 0 and rise")
    return counts


def measure(
    config: TrainingConfig, classes: ClassTable, counts: Sequence[int], train: Train
) -> list[ClassAtCount]:
    """Trains and judges every round.

    Runs lie in mask_counts in the run's own folder; finished ones of the same detector and masks are not made again.
    ValueError: no finished detector, or as `rounds_of`.
    """
    detector = finished_detector(config)
    if detector is None:
        raise ValueError(
            f"{config.output.dir} has no finished stage-wise detector; name one: data.detector_from=FILE"
        )
    stamp = stamp_of(detector, Path(config.data.train_annotations))
    folder = Path(config.output.dir) / "mask_counts" / f"{'-'.join(map(str, counts))}-{stamp}"
    document = read_annotations(Path(config.data.train_annotations), config.data.reading)
    every = classes.with_sources(["masks"] * classes.num_classes)
    masks = Counter(every.label_of_id(category) for category in true_masks(document))
    found: list[ClassAtCount] = []
    for number, kept in enumerate(rounds_of(every, masks, counts, config.seed)):
        path = folder / f"round{number}" / "train.json"
        by_id = {every.id_of_label(label): count for label, count in kept.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(with_counts(document, by_id, config.seed)))
        variant = changed(config, {"data.train_annotations": str(path), "data.mask_classes": AUTO})
        variant = mask_branch_alone(variant, detector, steps=config.schedule.mask_steps)
        ious = _ious(train_in(path.parent, variant, train), config, every)
        found += [
            ClassAtCount(
                name=every.name_of_label(label),
                kept=kept.get(label),
                masks=masks[label],
                objects=len(of_class),
                iou=sum(of_class) / len(of_class),
            )
            for label, of_class in sorted(ious.items())
            if masks[label]
        ]
        print(f"round {number + 1} of {len(counts) + 1} done", flush=True)
    return found


def _ious(checkpoint: Path, config: TrainingConfig, every: ClassTable) -> dict[int, list[float]]:
    """IoU of the mask of each true object of the validation set, by label."""
    device, images = chosen_device(config.device), Path(config.data.val_images)
    network, _, _ = load_network(checkpoint)
    truth = load_ground_truth(Path(config.data.val_annotations), every, images, reading=config.data.reading)
    found = predict(network.to(device), every, images, truth, device=device, detect=False)
    ious: dict[int, list[float]] = defaultdict(list)
    for one in found.object_masks:
        ious[every.label_of_id(one.category_id)].append(one.iou)
    return ious


def by_count(found: Sequence[ClassAtCount]) -> list[AtCount]:
    """The means over the classes that have more masks than the count, so that it took some away; all come last."""
    of_class = {(one.name, one.kept): one for one in found}
    counts = sorted({one.kept for one in found if one.kept is not None})
    rows = []
    for count in [*counts, None]:
        mine = [one for one in found if one.kept == count and (count is None or one.masks > count)]
        whole = [(one, of_class.get((one.name, 0)), of_class.get((one.name, None))) for one in mine]
        triples = [
            (one.iou, no.iou, full.iou) for one, no, full in whole if no is not None and full is not None
        ]
        if triples:
            iou, without, with_all = (sum(values) / len(triples) for values in zip(*triples, strict=True))
            rows.append(
                AtCount(kept=count, classes=len(triples), iou=iou, without=without, with_all=with_all)
            )
    return rows


def enough(rows: Sequence[AtCount]) -> int | None:
    """The least count from which on every one is `HALF` of the way or more; None where none is."""
    least = None
    for row in sorted((row for row in rows if row.kept is not None), key=lambda row: -(row.kept or 0)):
        if row.way < HALF:
            break
        least = row.kept
    return least


def report(rows: Sequence[AtCount]) -> str:
    """The table of counts, and from which on a class is nearer to those with all their masks."""
    table = [["masks of a class", "classes", "mask IoU", "without", "with all", "of the way"]]
    for row in rows:
        ious = [percent(value) for value in (row.iou, row.without, row.with_all)]
        name = "all" if row.kept is None else str(row.kept)
        table.append([name, str(row.classes), *ious, f"{100 * row.way:.0f} %"])
    least = enough(rows)
    found = f"{least} masks or more" if least is not None else "no number that was tried"
    return f"{aligned(table)}\n\nhalf of the way from no mask to all: {found}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status of `training_status`."""
    parser = command("training.experiments.mask_counts", __doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, default=Path("build/train/checkpoint.pt"))
    add(
        "--counts",
        default=",".join(map(str, COUNTS)),
        help="masks of a class (default: %(default)s), and all",
    )
    add("changes", nargs="*", metavar="key=value", help="changes to the run's configuration")
    options = parser.parse_args(arguments)
    with training_status("the same command goes on") as status:
        refuse_processes("training.experiments.mask_counts")
        contents = load_checkpoint(options.checkpoint)
        config = changed(config_from_dict(contents["training_config"]), options.changes)
        try:
            counts = [int(word) for word in options.counts.split(",")]
        except ValueError:
            raise ValueError(
                f"--counts {options.counts}: whole numbers with commas between are wanted"
            ) from None
        found = measure(config, ClassTable.from_dict(contents["classes"]), counts, train)
        rows = by_count(found)
        out = Path(config.output.dir) / "mask_counts.json"
        write_json(out, {"counts": to_plain(rows), "classes": to_plain(found)})
        print(f"{report(rows)}\n\n{out} written")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
