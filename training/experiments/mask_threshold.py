"""Do masks of classes without masks want another threshold than 0.5? Measured on classes held out of set A.

Each group of held-out classes has masks, but the mask branch is trained without them on a finished detector, so they
stand for set B (as in `training.experiments.transfer_form`). Of several thresholds the one with the best masks on their
ground-truth boxes is taken, where it is better than 0.5 by more than chance. No mask of set B is read.

`python -m training.experiments.mask_threshold --checkpoint build/train/checkpoint.pt --write`
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model.checkpoint import load_checkpoint, load_network, save_checkpoint
from model.classes import ClassTable
from model.dataclass_io import to_plain
from model.files import command
from training.config import TrainingConfig, changed, config_from_dict
from training.distributed import chosen_device, refuse_processes
from training.evaluate.predictions import predict
from training.evaluate.report import aligned, percent
from training.evaluate.truth import GroundTruth
from training.experiments.held_out import folds_of, truth_of_set_a
from training.experiments.variants import (
    Train,
    detector_in,
    digest,
    finished_detector,
    mask_branch_alone,
    train_in,
    write_json,
)
from training.process import training_status
from training.train import train

THRESHOLDS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
STANDARD_ERRORS = 2.0
"""A gain over 0.5 of fewer of its own standard errors counts as chance."""


@dataclass(frozen=True, kw_only=True)
class AtThreshold:
    """Mean IoU of the masks at one threshold, over the objects of held-out classes on their ground-truth boxes."""

    threshold: float
    iou: float
    gain: float
    """Over the same objects at 0.5, the mean."""
    gain_error: float
    """Standard error of that mean over the objects."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured, and the threshold to take."""

    objects: int
    held_out: tuple[tuple[str, ...], ...]
    rows: tuple[AtThreshold, ...]
    chosen: float


def chosen_threshold(ious: dict[float, list[float]]) -> tuple[tuple[AtThreshold, ...], float]:
    """From the IoU of every object at every threshold (0.5 among them, objects in the same order): rows and choice.

    The best mean is chosen where its gain over 0.5 exceeds `STANDARD_ERRORS` of its standard errors, else 0.5.
    """
    at_half = torch.tensor(ious[0.5], dtype=torch.float64)
    rows = []
    for threshold in sorted(ious):
        mine = torch.tensor(ious[threshold], dtype=torch.float64)
        gains = mine - at_half
        error = float(gains.std() / len(gains) ** 0.5) if len(gains) > 1 else 0.0
        rows.append(
            AtThreshold(
                threshold=threshold, iou=float(mine.mean()), gain=float(gains.mean()), gain_error=error
            )
        )
    best = max(rows, key=lambda row: row.iou)
    sure = best.gain > STANDARD_ERRORS * best.gain_error and len(at_half) > 1
    return tuple(rows), best.threshold if sure else 0.5


def calibrate(
    config: TrainingConfig,
    classes: ClassTable,
    train: Train,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    max_images: int | None = None,
) -> Calibration:
    """Measure `thresholds` as `config.validate_transfer` says (groups, folds, steps), by the validation set.

    Runs lie in calibrate_masks in the run's own folder; finished ones are not made again. The detector is found
    as `training.experiments.transfer_form.validate` does. Raises ValueError where set A has fewer classes than groups,
    or a threshold is not between 0 and 1.
    """
    wrong = [threshold for threshold in thresholds if not 0 < threshold < 1]
    if wrong:
        raise ValueError(f"a threshold is {wrong[0]}; it is above 0 and below 1")
    folder = Path(config.output.dir) / "calibrate_masks"
    classes = classes.with_few_masks_too()
    truth = truth_of_set_a(config, classes, max_images=max_images)
    folds = folds_of(config, classes, truth)
    detector = finished_detector(config) or detector_in(folder / "detector", config, train)
    ious: dict[float, list[float]] = {threshold: [] for threshold in {*thresholds, 0.5}}
    for number, fold in enumerate(folds):
        split = fold.write_split(folder / f"fold{number}_{digest(config, kept=fold.kept)}")
        # Weights do not depend on the threshold, so the runs are the same whatever was calibrated before.
        variant = changed(config, {"data.mask_classes": str(split), "model.transfer.mask_threshold": 0.5})
        steps = config.validate_transfer.steps
        trained = train_in(split.parent, mask_branch_alone(variant, detector, steps=steps), train)
        for threshold, found in _held_out_ious(trained, config, truth, fold.labels, sorted(ious)).items():
            ious[threshold] += found
    rows, chosen = chosen_threshold(ious)
    return Calibration(
        objects=len(ious[0.5]), held_out=tuple(fold.names for fold in folds), rows=rows, chosen=chosen
    )


def _held_out_ious(
    checkpoint: Path, config: TrainingConfig, truth: GroundTruth, held_out: list[int], thresholds: list[float]
) -> dict[float, list[float]]:
    """IoU of every object of the held-out labels at each threshold, in the same order."""
    device = chosen_device(config.device)
    network, classes, _ = load_network(checkpoint)
    ids = {classes.id_of_label(label) for label in held_out}
    ious = {}
    for threshold in thresholds:
        network.set_mask_threshold(threshold, held_out)
        found = predict(
            network.to(device), classes, Path(config.data.val_images), truth, device=device, detect=False
        )
        ious[threshold] = [one.iou for one in found.object_masks if one.category_id in ids]
    return ious


def write_threshold(checkpoint: Path, threshold: float) -> None:
    """Let the network of `checkpoint` be loaded, evaluated and exported with `threshold` for the classes of set B."""
    contents = load_checkpoint(checkpoint)
    contents["model_config"]["transfer"]["mask_threshold"] = threshold
    save_checkpoint(checkpoint, contents)


def report(calibration: Calibration) -> str:
    """The table of thresholds, and which one to take."""
    rows = [["threshold", "mask IoU", "gain", "standard error"]]
    for row in calibration.rows:
        figures = [percent(row.iou), f"{100 * row.gain:+.2f}", f"{100 * row.gain_error:.2f}"]
        rows.append([f"{row.threshold:g}", *figures])
    held_out = "; ".join(", ".join(group) for group in calibration.held_out)
    surest = " (no other is better by more than chance)" if calibration.chosen == 0.5 else ""
    return (
        f"{calibration.objects} objects of classes held out of set A ({held_out})\n\n{aligned(rows)}\n\n"
        f"for classes of set B: model.transfer.mask_threshold={calibration.chosen:g}{surest}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status of `training_status`."""
    parser = command("training.experiments.mask_threshold", __doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, default=Path("build/train/checkpoint.pt"))
    add("--groups", type=int, help="groups of set A (default: validate_transfer.groups)")
    add("--folds", type=int, help="groups held out in turn (default: all of them)")
    add("--steps", type=int, help="of the mask branch (default: validate_transfer.steps)")
    add("--max-images", type=int, help="judge by the first so many validation images")
    add(
        "--write",
        action="store_true",
        help="put the threshold into the checkpoint, for evaluation and export",
    )
    options = parser.parse_args(arguments)
    with training_status("the same command goes on") as status:
        refuse_processes("training.experiments.mask_threshold")
        contents = load_checkpoint(options.checkpoint)
        config = config_from_dict(contents["training_config"])
        groups = options.groups or config.validate_transfer.groups
        changes = {"groups": groups, "folds": options.folds or groups}
        changes["steps"] = options.steps or config.validate_transfer.steps
        config = changed(config, {f"validate_transfer.{key}": value for key, value in changes.items()})
        classes = ClassTable.from_dict(contents["classes"])
        calibration = calibrate(config, classes, train, max_images=options.max_images)
        out = Path(config.output.dir) / "calibrate_masks.json"
        write_json(out, {**to_plain(calibration), "steps": config.validate_transfer.steps})
        print(report(calibration))
        print(f"\n{out} written")
        if options.write:
            write_threshold(options.checkpoint, calibration.chosen)
            print(f"{options.checkpoint}: its network now has this threshold")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
