"""Inner validation: which form of the transfer function carries over to classes it never saw, judged without set B.

Some classes of set A are held out: they have masks, but the mask branch is trained without them, so they stand for set
B. One detector is trained (stage-wise training, Sec. 3.3), then for a few hundred steps the mask branch in every
candidate form on top of it; the candidate with the best masks on the held-out classes' ground-truth boxes is chosen. No
mask of set B is read.

`python -m training.train --config ... --validate-transfer [validate_transfer.folds=3 ...]`
"""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from model.checkpoint import load_network
from model.classes import ClassTable
from model.dataclass_io import to_plain
from training.config import TrainingConfig, changed
from training.data.annotations import read_annotations
from training.data.coco import classes_of, training_set
from training.data.splits import AUTO
from training.distributed import chosen_device
from training.evaluate.predictions import predict
from training.evaluate.report import aligned, percent
from training.evaluate.truth import GroundTruth
from training.experiments.held_out import folds_of, truth_of_set_a
from training.experiments.variants import (
    Train,
    detector_in,
    digest,
    finished_detector,
    kept_rows,
    mask_branch_alone,
    row_of,
    train_in,
    write_json,
)

Changes = dict[str, Any]


def _form(**transfer: Any) -> Changes:
    """The paper's form (cls+box, 2 layers, LeakyReLU; Table 1) with some settings changed, as dotted keys.

    T starts by fan-in, as ours; "exact" alone starts as the paper's own code has it.
    """
    paper = {
        "kind": "transfer",
        "input": "cls+box",
        "layers": 2,
        "activation": "leaky_relu",
        "init": "fan_in",
        "stop_gradient": True,
        "normalise": False,
        "residual": False,
        "dropout": 0.0,
        "noise": 0.0,
    }
    return {f"model.transfer.{key}": value for key, value in (paper | transfer).items()}


CANDIDATES: dict[str, Changes] = {
    "class_agnostic": _form(kind="class_agnostic"),
    "exact": _form(init="fan_out"),
    "exact_fan_in": _form(),
    "one_layer": _form(layers=1),
    "cls": _form(input="cls"),
    "normalised": _form(normalise=True),
    "residual": _form(residual=True),
    "residual_normalised": _form(residual=True, normalise=True),
    "residual_normalised_one_layer": _form(residual=True, normalise=True, layers=1),
    "residual_normalised_cls": _form(residual=True, normalise=True, input="cls", layers=1),
    "residual_dropout": _form(residual=True, normalise=True, input="cls", layers=1, dropout=0.5),
    "residual_noise": _form(residual=True, normalise=True, input="cls", layers=1, dropout=0.3, noise=1.0),
}
"""What is tried, from the baseline over the paper's form to those that fall back on the baseline."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A candidate's masks on ground-truth boxes: mean IoU over the objects of held-out and of trained classes."""

    name: str
    held_out_iou: float
    trained_iou: float
    fold_ious: tuple[float, ...]
    """Of the held-out classes, fold by fold."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All candidates in the order they were tried, what filling the box would give, and the name of the best."""

    judged: tuple[Judged, ...]
    box_fill: float
    held_out: tuple[tuple[str, ...], ...]
    chosen: str


def validate(
    config: TrainingConfig, train: Train, *, candidates: Mapping[str, Changes] = CANDIDATES
) -> Outcome:
    """Judge every candidate as `config.validate_transfer` says, by the objects of the validation set.

    Runs lie in validate_transfer in the run's own folder; finished ones are not made again. The detector is that of
    `config.data.detector_from`, else of the run's own checkpoint where it holds a finished stage-wise one, else it is
    trained. Raises ValueError where set A has fewer classes than groups.
    """
    chosen_device(config.device)  # before hours of training: where CUDA was asked for and is not there
    wanted = config.validate_transfer
    folder = Path(config.output.dir) / "validate_transfer"
    path = Path(config.data.val_annotations)
    document = read_annotations(path, config.data.reading)
    if config.data.mask_classes == AUTO:
        classes = training_set(config).classes.with_few_masks_too()
    else:
        classes = classes_of(document, config.data.mask_classes, path)
    truth = truth_of_set_a(config, classes, document=document)
    folds = folds_of(config, classes, truth)
    detector = finished_detector(config) or detector_in(folder / "detector", config, train)
    splits = [(fold, fold.write_split(folder / f"fold{number}")) for number, fold in enumerate(folds)]
    rows_file = folder / "rows.json"
    rows = kept_rows(rows_file)
    mine: dict[str, list[dict[str, Any]]] = {name: [] for name in candidates}
    for (fold, split), (name, changes) in itertools.product(splits, candidates.items()):
        split_config = changed(config, {**changes, "data.mask_classes": str(split)})
        variant = mask_branch_alone(split_config, detector, steps=wanted.steps)
        settings = digest(variant, kept=split.read_text(encoding="utf-8"), val=config.data.val_annotations)
        make = partial(_row, variant, split.parent / name, truth, fold.labels, classes, train)
        row = row_of(rows, settings, make)
        write_json(rows_file, {"rows": rows})
        mine[name].append(row)
        print(f"{split.parent.name}, {name}: held-out mask IoU {percent(_mean(row['held_out']))}", flush=True)
    judged = tuple(_judged(name, of_folds) for name, of_folds in mine.items())
    fills = [fill for row in next(iter(mine.values())) for fill in row["box_fill"]]
    return Outcome(
        judged=judged,
        box_fill=_mean(fills),
        held_out=tuple(fold.names for fold in folds),
        chosen=max(judged, key=lambda one: one.held_out_iou).name,
    )


def _row(
    config: TrainingConfig,
    folder: Path,
    truth: GroundTruth,
    held_out: Sequence[int],
    classes: ClassTable,
    train: Train,
) -> dict[str, Any]:
    start = time.monotonic()
    network, _, _ = load_network(train_in(folder, config, train))
    device = chosen_device(config.device)
    images = Path(config.data.val_images)
    found = predict(network.to(device), classes, images, truth, device=device, detect=False)
    inside = [classes.label_of_id(one.category_id) in held_out for one in found.object_masks]
    return {
        "held_out": [one.iou for one, is_in in zip(found.object_masks, inside, strict=True) if is_in],
        "trained": [one.iou for one, is_in in zip(found.object_masks, inside, strict=True) if not is_in],
        "box_fill": [one.box_fill for one, is_in in zip(found.object_masks, inside, strict=True) if is_in],
        "seconds": time.monotonic() - start,
    }


def _judged(name: str, rows: list[dict[str, Any]]) -> Judged:
    return Judged(
        name=name,
        held_out_iou=_mean([iou for row in rows for iou in row["held_out"]]),
        trained_iou=_mean([iou for row in rows for iou in row["trained"]]),
        fold_ious=tuple(_mean(row["held_out"]) for row in rows),
        seconds=sum(row["seconds"] for row in rows),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def settings_lines(changes: Changes) -> str:
    """Dotted settings as the lines of a TOML file."""
    tables: dict[str, list[str]] = {}
    for dotted, value in changes.items():
        table, _, key = dotted.rpartition(".")
        tables.setdefault(table, []).append(f"{key} = {json.dumps(value)}")
    return "\n\n".join("\n".join([f"[{table}]", *lines]) for table, lines in tables.items())


def report(outcome: Outcome, candidates: Mapping[str, Changes]) -> str:
    """The table of candidates, the best first, and the lines to set."""
    rows = [["candidate", "held-out IoU", "trained IoU", "seconds"]]
    for one in sorted(outcome.judged, key=lambda one: -one.held_out_iou):
        rows.append([one.name, percent(one.held_out_iou), percent(one.trained_iou), f"{one.seconds:.0f}"])
    rows.append(["(filling the box)", percent(outcome.box_fill), "", ""])
    held_out = "; ".join(", ".join(group) for group in outcome.held_out)
    best = f"Best on held-out classes: {outcome.chosen}. To train with it, set in the configuration:"
    settings = settings_lines(candidates[outcome.chosen])
    return "\n\n".join([f"held out of set A: {held_out}", aligned(rows), best, settings])


def chosen_candidates(names: str) -> dict[str, Changes]:
    """The candidates of these names (commas between), or all; ValueError names an unknown one."""
    if names == "all":
        return CANDIDATES
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in CANDIDATES]
    if unknown or not asked:
        raise ValueError(
            f"validate_transfer.candidates is {names!r}: no form is called {', '.join(unknown) or 'nothing'}; "
            f"there are all, or {', '.join(CANDIDATES)}"
        )
    return {name: CANDIDATES[name] for name in asked}


def run(config: TrainingConfig, train: Train) -> None:
    """As `--validate-transfer` does: `validate`, print the table, write validate_transfer.json to the run's folder."""
    candidates = chosen_candidates(config.validate_transfer.candidates)
    outcome = validate(config, train, candidates=candidates)
    out = Path(config.output.dir) / "validate_transfer.json"
    more = {"steps": config.validate_transfer.steps, "settings": candidates[outcome.chosen]}
    write_json(out, to_plain(outcome) | more)
    print(report(outcome, candidates))
    print(f"\n{out} written")
