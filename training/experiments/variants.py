"""Variants of one training: the same configuration with some keys changed, each run in a folder of its own.

The experiments (`training.experiments.transfer_form`, `training.experiments`) train one detector and then the mask
branch in several forms on top of it (stage-wise training, Sec. 3.3).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from model.checkpoint import load_checkpoint
from model.files import write_whole
from training.config import MAY_CHANGE, TrainingConfig, changed, config_from_dict, flat, to_dict
from training.schedule import STAGES


class Train(Protocol):
    """`training.train.train`: trains to the end and returns the checkpoint. Given from outside, because
    that module calls `training.experiments.transfer_form`."""

    def __call__(self, config: TrainingConfig, *, resume: bool = False) -> Path: ...


def digest(config: TrainingConfig, **more: Any) -> str:
    """Eight hexadecimal digits that differ where the training, or anything given beside it, differs.

    Settings at their defaults are left out: a run keeps its digits when a new setting is added to the program.
    """
    usual = flat(to_dict(TrainingConfig())) | {
        "data.mask_classes": "all"
    }  # by which runs were named before "auto"
    relevant = {
        key: value
        for key, value in flat(to_dict(config)).items()
        if not key.startswith(MAY_CHANGE) and value != usual.get(key)
    }
    text = json.dumps([relevant, more], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def stamp_of(*files: Path) -> str:
    """Eight digits of what is in files: what was trained on another detector, or by other masks, is trained anew."""
    hashes = b"".join(hashlib.sha256(one.read_bytes()).digest() for one in files)
    return hashlib.sha256(hashes).hexdigest()[:8]


def detector_alone(config: TrainingConfig) -> TrainingConfig:
    """The stage-wise training's first part: the detector, for its own or else the end-to-end number of steps.

    Settings of the mask branch and the transfer function, which the detector never uses, are the same in all, so that
    one detector serves every form. Raises ValueError where the schedule has neither number of steps.
    """
    steps = config.schedule.detector_steps or config.schedule.end_to_end_steps
    if not steps:
        raise ValueError(
            "the schedule has no steps for a detector; set schedule.detector_steps, or data.detector_from to a "
            "checkpoint that has one"
        )
    changes: dict[str, Any] = {f"schedule.{stage}_steps": 0 for stage in STAGES}
    changes |= {"schedule.detector_steps": steps}
    changes |= {"optimiser.mask_learning_rate": None, "optimiser.transfer_weight_decay": None}
    changes |= {"augment.views": 0, "data.features": ""}  # the mask stage's
    changes |= {"box_losses": {}, "teacher": {}}  # nor anything else that the mask branch alone learns by
    changes |= {"model.transfer": {"kind": "class_agnostic"}, "model.mask": {}}
    return changed(config, changes)


def finished_detector(config: TrainingConfig) -> Path | None:
    """The checkpoint of `data.detector_from`, or the run's own where its detector stage is done; None without either.

    An end-to-end run's own is not taken: the masks that an experiment holds out have shaped its features.
    """
    if config.data.detector_from:
        return Path(config.data.detector_from)
    own = Path(config.output.dir) / "checkpoint.pt"
    if not own.is_file() or not config.schedule.detector_steps:
        return None
    contents = load_checkpoint(own)
    before = config_from_dict(contents["training_config"])
    done = before.schedule.steps_done(contents["step"])["detector"] == config.schedule.detector_steps
    if not done or before.schedule.end_to_end_steps:
        return None
    return own if digest(detector_alone(before)) == digest(detector_alone(config)) else None


def mask_branch_alone(config: TrainingConfig, detector: Path, *, steps: int) -> TrainingConfig:
    """The stage-wise training's second part: the mask branch and T on the frozen detector of a checkpoint."""
    stages = {f"schedule.{stage}_steps": steps if stage == "mask" else 0 for stage in STAGES}
    return changed(config, {**stages, "data.detector_from": str(detector)})


def with_features(config: TrainingConfig, folder: Path) -> TrainingConfig:
    """A mask branch's training that keeps what the detector sees in `folder`, where its images have fixed views."""
    if not config.augment.views or config.data.features:
        return config
    return changed(config, {"data.features": str(folder)})


def detector_in(folder: Path, config: TrainingConfig, train: Train) -> Path:
    """As `train_in` with the detector alone of `config`; it is the same one for every split of the classes."""
    return train_to_end(folder / detector_digest(config), detector_alone(config), train)


def detector_digest(config: TrainingConfig) -> str:
    """The name of the folder in which `detector_in` trains the detector of `config`."""
    return digest(changed(detector_alone(config), {"data.mask_classes": "all"}))


def train_in(folder: Path, config: TrainingConfig, train: Train) -> Path:
    """Train `config` in `folder`/<digest>, or go on with what an earlier run began there. The checkpoint's path."""
    return train_to_end(folder / digest(config), config, train)


def train_to_end(out: Path, config: TrainingConfig, train: Train) -> Path:
    """Train `config` in the folder `out`, or go on with what an earlier run has of it; the checkpoint's path."""
    return train(changed(config, {"output.dir": str(out)}), resume=(out / "checkpoint.pt").is_file())


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; of a single value there is no deviation (None)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def kept_rows(path: Path) -> list[dict[str, Any]]:
    """The rows an earlier run has written to `path`; none where there is no such file."""
    if not path.is_file():
        return []
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it to begin anew") from error
    return rows


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` whole or not at all."""
    write_whole(path, json.dumps(document, indent=1) + "\n")


def row_of(rows: list[dict[str, Any]], settings: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The kept row of these settings, or a new one, which is added to `rows`."""
    for row in rows:
        if row["settings"] == settings:
            return row
    row = {**make(), "settings": settings}
    rows.append(row)
    return row
