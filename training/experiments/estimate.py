"""How long a grid will take: seconds of the rows that are there, and a few timed steps of what is not.

To keep what a detector sees (`augment.views`), once a seed, is not reckoned in.
"""

import io
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import load_checkpoint
from training.config import TrainingConfig, changed
from training.data.annotations import read_annotations
from training.data.reading import batches
from training.distributed import ALONE
from training.drawn.shapes import ShapesConfig, write_shapes
from training.evaluate.predictions import predict
from training.evaluate.truth import load_ground_truth
from training.experiments.grid import Cell, DrawingConfig, drawn_data, stage_wise
from training.experiments.variants import detector_alone, detector_digest, digest, with_features
from training.schedule import STAGES
from training.train import data_of_stage, prepared

STEPS = 3
"""Timed at most for each kind of training; the first, which is slower, counts only where it is alone."""
PATIENCE = 20.0
"""Seconds of steps after which no further one is begun."""
VAL_IMAGES = 8

Row = Mapping[str, Any]


@dataclass(kw_only=True)
class Estimate:
    """Seconds that the rows of one name still take, over all seeds and splits; `unknown`: why not all are known."""

    row: str
    trainings: int = 0
    seconds: float = 0.0
    unknown: str = ""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Seconds of one training, and of evaluating it."""

    training: float
    evaluation: float


def kinds(cell: Cell) -> dict[str, str]:
    """Names of a cell's trainings, "detector" (shared) and "training" (its own), that are the same wherever they take
    the same time: neither the seed nor the data set's place counts."""
    return {part: _kind(config) for part, config in parts(cell).items()}


def parts(cell: Cell) -> dict[str, TrainingConfig]:
    """What is trained for a cell, as `kinds`; the mask branch without the detector that it will stand on."""
    config = cell.config
    if not cell.row.box and not stage_wise(config):
        return {"training": config}
    found = {} if config.data.detector_from else {"detector": detector_alone(cell.detector)}
    if not cell.row.box and cell.row.student:
        found["training"] = changed(config, {"schedule.detector_steps": 0, "data.detector_from": ""})
    return found


def estimate(
    to_make: Sequence[Cell], kept: Sequence[Row], *, out: Path, drawn: DrawingConfig | None, timed: bool
) -> list[Estimate]:
    """For each row of the grid what it still takes; a detector counts with the first row that needs it.

    Args:
        to_make: cells without a row.
        kept: finished rows, whose seconds are taken where a kind is one of theirs.
        out: folder of the grid, where finished detectors lie.
        drawn: size of the data set that each seed draws; None: the configuration's data are taken.
        timed: whether steps of kinds without a finished row are timed; else these are unknown.
    """
    known: dict[str, Timed | str] = {}
    sums: dict[str, Estimate] = {}
    counted: set[tuple[int, str]] = set()
    with tempfile.TemporaryDirectory() as folder:
        for cell in to_make:
            of_row = sums.setdefault(cell.row.name, Estimate(row=cell.row.name))
            for part, config in parts(cell).items():
                kind = _kind(config)
                if (cell.seed, digest(config)) in counted:
                    continue
                counted.add((cell.seed, digest(config)))
                if part == "detector" and _finished(out / f"seed{cell.seed}" / "runs", cell):
                    continue
                if kind not in known:
                    known[kind] = of_kept(kind, part, kept) or (
                        _timed(config, Path(folder) / kind, drawn=drawn)
                        if timed
                        else "no finished row to go by"
                    )
                found = known[kind]
                of_row.trainings += 1
                if isinstance(found, str):
                    of_row.unknown = found
                else:
                    of_row.seconds += found.training + (found.evaluation if part == "training" else 0.0)
    return list(sums.values())


def report(estimates: Sequence[Estimate]) -> str:
    """The estimates as lines, their sum last."""
    lines = [f"  {one.row}: {one.trainings} to train, {_hours([one])}" for one in estimates]
    reasons = dict.fromkeys(one.unknown for one in estimates if one.unknown)
    return "\n".join(
        [f"{_hours(estimates)} on this machine:", *lines, *(f"  not known: {reason}" for reason in reasons)]
    )


def _hours(estimates: Sequence[Estimate]) -> str:
    seconds = sum(one.seconds for one in estimates)
    known = f"about {seconds / 3600:.2f} hours" if seconds else ""
    if not any(one.unknown for one in estimates):
        return known or "nothing but evaluation"
    return f"{known} and more" if known else "nobody knows how long"


def of_kept(kind: str, part: str, kept: Sequence[Row]) -> Timed | None:
    """Mean seconds of the finished rows that trained this kind from its beginning; None without any."""
    rows = [row for row in kept if row["kinds"].get(part) == kind and row["seconds"][part] is not None]
    if not rows:
        return None
    return Timed(
        training=sum(row["seconds"][part] for row in rows) / len(rows),
        evaluation=sum(row["seconds"]["evaluation"] for row in rows) / len(rows),
    )


def _kind(config: TrainingConfig) -> str:
    return digest(changed(config, {"seed": 0, "data": {}}), device=config.device, threads=config.threads)


def _finished(runs: Path, cell: Cell) -> bool:
    """Whether the detector of a cell is trained to its end."""
    path = runs / detector_digest(cell.detector) / "checkpoint.pt"
    return path.is_file() and bool(load_checkpoint(path)["finished"])


def _timed(config: TrainingConfig, folder: Path, *, drawn: DrawingConfig | None) -> Timed | str:
    """A few steps and predictions of `config` on a small set in `folder`, reckoned up; or why it cannot be."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return _time_steps(config, folder, drawn=drawn)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        return str(error)


def _time_steps(config: TrainingConfig, folder: Path, *, drawn: DrawingConfig | None) -> Timed:
    images = max(2 * config.schedule.batch_size, 16)
    if drawn is not None:
        write_shapes(folder / "data", ShapesConfig(train=images, val=VAL_IMAGES), workers=1)
        data = drawn_data(folder / "data")
        if config.data.mask_classes != drawn_data(Path(config.data.train_images).parent)["data.mask_classes"]:
            del data["data.mask_classes"]  # a split that does not come with the data
        of_all = drawn.val
    else:
        data = {}
        for part, count in (("train", images), ("val", VAL_IMAGES)):
            path = folder / f"{part}.json"
            of_all = write_some(Path(getattr(config.data, f"{part}_annotations")), path, count)
            data[f"data.{part}_annotations"] = str(path)
    config = changed(config, data)
    if stage_wise(config):
        config = with_features(config, folder / "features")
    # The steps need not learn, and random weights must not run away.
    unlearning = {"optimiser.learning_rate": 1e-9, "optimiser.mask_learning_rate": None}
    quiet = {"output.dir": str(folder / "run"), "model.backbone.weights": "none"}
    run, images_of_run = prepared(changed(config, unlearning | quiet), ALONE, resume=False, restart=True)
    training = 0.0
    for stage in STAGES:
        steps = config.schedule.steps(stage)
        if not steps:
            continue
        run.begin(stage)
        seconds: list[float] = []
        with closing(batches(run, data_of_stage(run, images_of_run), stage)) as coming:
            while len(seconds) < min(STEPS, steps) and sum(seconds) < PATIENCE:
                start = time.monotonic()
                run.train_on(*next(coming))
                seconds.append(time.monotonic() - start)
        counted = seconds[1:] or seconds
        training += sum(counted) / len(counted) * steps
    start = time.monotonic()
    truth = load_ground_truth(
        Path(config.data.val_annotations),
        run.classes,
        Path(config.data.val_images),
        reading=config.data.reading,
    )
    predict(run.network.eval(), run.classes, Path(config.data.val_images), truth, device=run.device)
    each = (time.monotonic() - start) / len(truth.image_ids)
    return Timed(training=training, evaluation=each * of_all)


def write_some(annotations: Path, out: Path, count: int) -> int:
    """Write `count` images of a COCO file that have objects, spread over it, to `out`; how many it has in all."""
    document = read_annotations(annotations)
    with_objects = {one["image_id"] for one in document["annotations"]}
    images = [one for one in document["images"] if one["id"] in with_objects]
    chosen = images[:: max(len(images) // count, 1)][:count]
    kept = {one["id"] for one in chosen}
    objects = [one for one in document["annotations"] if one["image_id"] in kept]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document | {"images": chosen, "annotations": objects}), encoding="utf-8")
    return len(document["images"])
