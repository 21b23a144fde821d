"""Masks for thousands of classes from the masks of a few: the two-stage training of Sec. 5 (Visual Genome), whole.

    python -m training.recipes.two_stage DETECTOR.toml MASKS.toml --out build/vg3k [key=value ...]

1. The detector of `DETECTOR.toml` is trained on all of its classes (3 000 of Visual Genome).
2. Its class rows are sliced to the classes of `MASKS.toml` (COCO's 80), matched by name.
3. On this frozen detector the mask branch and T of `MASKS.toml` are trained, with masks of these classes.
4. The whole classifier is restored, and T applied to all of its rows: `OUT/checkpoint.pt`, for evaluation and export.

The paper's own code does 2 and 4 by two scripts and by hand. The settings of [model] beside mask, transfer and
keypoints must be the same in both files; key=value changes both. What an earlier run of the same command has
finished is not made again. It runs under `torchrun` too.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from model.build import build_network
from model.checkpoint import FORMAT, load_checkpoint, load_weights, save_checkpoint, without_pretrained
from model.classes import ClassTable, class_table
from model.config import ModelConfig, model_config_from_dict, to_dict
from model.files import command, first_few
from model.masks.class_rows import rows_of_a_class, sliced, with_rows_of
from training.config import TrainingConfig, changed, flat, load_config
from training.data.annotations import read_annotations
from training.distributed import started_together
from training.experiments.variants import mask_branch_alone, train_to_end
from training.process import training_status
from training.start import fill_rows, keep_mean_of
from training.train import train

MASK_SIDE = ("mask_branch.", "mask_weights.", "keypoint_branch.")
MAY_DIFFER = ("mask.", "transfer.", "keypoints.", "backbone.weights")


def two_stage(detector: TrainingConfig, masks: TrainingConfig, out: Path, *, detector_from: str = "") -> Path:
    """Train both stages, slice and restore in between; the path of the whole network's checkpoint, in `out`.

    Args:
        detector: of the first stage, `schedule.detector_steps` long.
        masks: of the second, `schedule.mask_steps` long.
        detector_from: a finished detector, in place of the first stage.

    Raises:
        ValueError: see `training.train.train`; or the two do not belong together.
        Stopped: by a signal, after the state of the stage was saved; the same call goes on.
    """
    require_stages(detector, masks, trained=bool(detector_from))
    require_mask_classes_known(detector, masks, detector_from)
    whole = Path(detector_from)
    if not detector_from:
        whole = train_to_end(out / "detector", changed(detector, {"schedule.mask_steps": 0}), train)
    few = out / "sliced.pt"
    slice_classes(whole, mask_table(masks), few)
    of_masks = train_to_end(
        out / "masks", mask_branch_alone(masks, few, steps=masks.schedule.mask_steps), train
    )
    final = out / "checkpoint.pt"
    restore_classes(whole, of_masks, final)
    return final


def require_stages(detector: TrainingConfig, masks: TrainingConfig, *, trained: bool) -> None:
    """ValueError where a stage has no steps or others, or the two networks differ beside their mask branches."""
    schedule = detector.schedule
    if not trained and (schedule.detector_steps < 1 or schedule.end_to_end_steps):
        raise ValueError(
            f"the detector's schedule has {schedule.detector_steps} detector_steps and {schedule.end_to_end_steps} "
            "end_to_end_steps; its stage wants the first alone"
        )
    if masks.schedule.mask_steps < 1:
        raise ValueError("the masks' schedule has no mask_steps; give it some")
    if masks.model.transfer.kind == "class_specific":
        raise ValueError(
            "model.transfer.kind is class_specific, which has no masks for the detector's other classes; set "
            "transfer or class_agnostic"
        )
    one, other = flat(to_dict(detector.model)), flat(to_dict(masks.model))
    differing = [
        key for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key) and not key.startswith(MAY_DIFFER)
    ]  # fmt: skip
    if differing:
        listed = "; ".join(f"model.{key} is {one.get(key)!r} and {other.get(key)!r}" for key in differing[:4])
        raise ValueError(f"the two stages have different detectors: {listed}; give both the same")


def require_mask_classes_known(detector: TrainingConfig, masks: TrainingConfig, detector_from: str) -> None:
    """ValueError before anything is trained, where the data of the masks has classes that the detector's has not."""
    if detector_from:
        names = ClassTable.from_dict(load_checkpoint(detector_from)["classes"]).names
        source = detector_from
    else:
        source = detector.data.train_annotations
        names = class_table(read_annotations(Path(source))["categories"], "all").names
    if unknown := [name for name in mask_table(masks).names if name not in names]:
        raise ValueError(
            f"{source}: {len(unknown)} classes of {masks.data.train_annotations} are not among its {len(names)}: "
            f"{first_few(unknown)}; both must call them by the same names"
        )


def mask_table(masks: TrainingConfig) -> ClassTable:
    """The classes of the second stage's data."""
    return class_table(read_annotations(Path(masks.data.train_annotations))["categories"], "all")


def slice_classes(checkpoint: str | Path, classes: ClassTable, out: Path) -> None:
    """Write the detector of `checkpoint` with the rows of `classes` alone, matched by name, to `out`.

    ValueError where it does not know one of them.
    """
    contents = load_checkpoint(checkpoint)
    theirs = ClassTable.from_dict(contents["classes"])
    try:
        weights = sliced(contents["model"], theirs.names, classes.names)
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error
    save_checkpoint(out, _without_training({**contents, "model": weights, "classes": classes.to_dict()}))


def restore_classes(detector: str | Path, masks: str | Path, out: Path) -> None:
    """Write the network with the detector and all classes of `detector`, and the mask branch and T of `masks`.

    Set A are the classes that had masks in `masks`; what taught the others is as there too. Fixed
    rows that T reads (Table 1a) are those of `masks` for its classes; further words are read from their file, further
    random ones drawn. Normalised weights keep the mean over the classes T was trained on.

    Raises:
        ValueError: the two do not belong together.
    """
    whole, few = load_checkpoint(detector), load_checkpoint(masks)
    names = ClassTable.from_dict(whole["classes"])
    of_masks = ClassTable.from_dict(few["classes"])
    classes = names.with_sources_of(of_masks)
    own_mean = few["model_config"]["transfer"]["normalise"]
    model = model_config_from_dict(few["model_config"])
    model = without_pretrained(replace(model, transfer=replace(model.transfer, kept_mean=own_mean)))
    network = build_network(model, num_classes=classes.num_classes)
    fill_rows(network, model, classes)
    weights = network.state_dict()
    weights |= {name: value for name, value in whole["model"].items() if not name.startswith(MASK_SIDE)}
    for name, value in few["model"].items():
        if name.startswith(MASK_SIDE):
            weights[name] = _restored(weights, name, value, of_masks, classes)
    load_weights(network, weights, source=f"{detector} with {masks}")
    if network.mask_weights.mean is not None and "mask_weights.mean" not in few["model"]:
        keep_mean_of(network, few["model"])
    contents = {
        **few,
        "model": network.state_dict(),
        "classes": classes.to_dict(),
        "model_config": to_dict(model),
    }
    contents["training_config"] = _joined(whole["training_config"], few["training_config"], model)
    save_checkpoint(out, _without_training(contents))


def _restored(
    weights: dict[str, Tensor], name: str, value: Tensor, few: ClassTable, classes: ClassTable
) -> Tensor:
    rows = rows_of_a_class(name, value)
    return with_rows_of(weights[name], value, few.names, classes.names, rows) if rows else value


def _joined(whole: dict[str, Any], few: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """The configuration of the restored network: that of the masks, with the data of the detector."""
    data = {**whole["data"], "detector_from": "", "start_from": ""}
    return {**few, "data": data, "model": to_dict(model)}


def _without_training(contents: dict[str, Any]) -> dict[str, Any]:
    """Contents without the state of a training: nobody goes on with these weights under that optimiser."""
    kept = ("model", "model_config", "training_config", "classes", "step", "revision", "torch")
    return {"format": FORMAT, **{key: contents[key] for key in kept if key in contents}}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status of `training_status`."""
    parser = command("training.recipes.two_stage", __doc__)
    add = parser.add_argument
    add("detector", type=Path, metavar="DETECTOR.toml", help="the detector of all classes")
    add("masks", type=Path, metavar="MASKS.toml", help="mask branch and T, on the classes with masks")
    add("--out", type=Path, default=Path("build/two_stage"))
    add("--detector-from", default="", metavar="FILE", help="a finished detector for the first stage")
    add("changes", nargs="*", metavar="key=value", help="of both, such as device=cpu")
    options = parser.parse_intermixed_args(arguments)
    with training_status("the same command goes on") as status:
        detector = load_config(options.detector, options.changes)
        masks = load_config(options.masks, options.changes)
        path = two_stage(detector, masks, options.out, detector_from=options.detector_from)
        if started_together()[0] == 0:
            print(f"done: {path}")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
