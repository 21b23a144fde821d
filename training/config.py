"""A training's whole configuration: one TOML file, changed key by key on the command line.

Every table of the file is a frozen dataclass; unknown keys, wrong types and values that make no sense are
refused by name. The whole of it goes into the checkpoint.
"""

import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from model.config import ModelConfig
from model.dataclass_io import from_plain, require_at_least, require_shares, to_plain
from training.data.augment_config import AugmentConfig
from training.data.tools import Reading
from training.optimiser_config import OptimiserConfig
from training.schedule import STAGES, ScheduleConfig

DEFAULT_CONFIG = Path("training/presets/shapes.toml")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A COCO data set and the split of its classes (Sec. 3.1)."""

    train_images: str = "build/shapes/train"
    train_annotations: str = "build/shapes/train.json"
    val_images: str = "build/shapes/val"
    val_annotations: str = "build/shapes/val.json"
    mask_classes: str = "auto"
    """Set A: "auto", the classes of which enough objects have masks, and every other mask is read too; or "all", "voc",
    "nonvoc", names with commas between, the path of a file of names, or a random split of Figure 3 such as
    "random:E3_A40B40" (see `training.data.splits`): then no mask that a human made of another class, set B, is read."""
    skip_empty: bool = False
    """Whether images without an object, crowd regions aside, are left out of training (Detectron)."""
    crowd_as_objects: bool = False
    """Whether annotations with `iscrowd` 1 are objects like others, in training, validation and evaluation: CVAT writes
    it for every mask."""
    names: Literal["exact", "lenient"] = "exact"
    """lenient: where an image's file is not there, the one file of a near name is taken (`training.images.names`)."""
    decode_first: bool = False
    """Whether every image is decoded before the training starts, not only its header read."""
    workers: int | None = None
    """Processes that read and augment images; 0 does it in the training's own. The result is the same. Absent: 2, and
    with a GPU all cores but one, at most 10, shared by the training processes of a machine."""
    detector_from: str = ""
    """A checkpoint whose detector is taken over: its backbone, RPN and box branch. Empty: none."""
    start_from: str = ""
    """A checkpoint or an archive (.mar, or the TorchScript file in it) of perhaps other classes: all weights that fit
    are taken over, the rows of classes by their names (`training.start`). Empty: none."""

    features: str = ""
    """Folder in which stage "mask" keeps what the frozen detector sees of each view (`augment.views`), so that trunk
    and RPN run once a view and not once a step; other runs on the same detector and data share it. The result is the
    same. Empty: nothing is kept."""

    def __post_init__(self) -> None:
        require_at_least(0, workers=self.workers)

    @property
    def reading(self) -> Reading:
        """How freely annotation files, and the names of images in them, are taken."""
        return Reading.of(vars(self))


@dataclass(frozen=True, kw_only=True)
class LossWeightsConfig:
    """What each loss is multiplied by before they are added (the paper: 1 each)."""

    loss_objectness: float = 1.0
    loss_rpn_box: float = 1.0
    loss_class: float = 1.0
    loss_box: float = 1.0
    loss_mask: float = 1.0
    loss_keypoint: float = 1.0
    """Of a network with keypoints (Mask R-CNN, Sec. 5)."""

    def __post_init__(self) -> None:
        require_at_least(0, **vars(self))


@dataclass(frozen=True, kw_only=True)
class BoxLossesConfig:
    """Losses of BoxInst (Tian et al., 2021) for objects without masks; weights of 0, as in the paper, are off."""

    projection: float = 0.0
    """Weight of the projection loss: rows and columns of the mask fill those of the box. BoxInst: 1."""
    pairwise: float = 0.0
    """Weight of the pairwise loss: neighbours of like colour get the same label. BoxInst: 1."""
    warmup_steps: int = 10_000
    """Steps over which the pairwise loss rises linearly; at most half of a stage is taken. BoxInst: 10 000."""
    colour_threshold: float = 0.3
    """Least similarity of two colours that are alike, in [0, 1] (tau of BoxInst, Sec. 3.2)."""
    margin: float = 0.1
    """RoIs of objects without masks reach beyond each side by this fraction (ours). At 0 and on ground-truth boxes no
    cell is known to be background, and a mask that fills its box has neither loss."""

    def __post_init__(self) -> None:
        require_at_least(
            0, projection=self.projection, pairwise=self.pairwise, warmup_steps=self.warmup_steps
        )
        require_shares(colour_threshold=self.colour_threshold, margin=self.margin)

    @property
    def used(self) -> bool:
        """Whether either loss has a weight."""
        return self.projection > 0 or self.pairwise > 0

    def weights(self, step: int, *, of: int) -> dict[str, float]:
        """Weight of each loss at `step` (0 first) of a stage of `of` steps; none while not used."""
        if not self.used:
            return {}
        warmup = min(self.warmup_steps, of // 2)
        share = min((step + 1) / warmup, 1.0) if warmup else 1.0
        return {"loss_projection": self.projection, "loss_pairwise": self.pairwise * share}


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A moving average of the network, whose masks of objects without masks become targets (BoxTeacher, Cheng et al.,
    2023)."""

    weight: float = 0.0
    """Of the loss to the teacher's masks. 0: no teacher. BoxTeacher: 0.5."""
    momentum: float = 0.999
    """What the average keeps in a step (BoxTeacher); less at a stage's beginning, see `training.teacher`."""
    warmup_steps: int = 10_000
    """Steps of a stage before the teacher's masks count; at most half of a stage is taken. BoxTeacher: 10 000, over
    which their weight rises linearly."""
    mask_threshold: float = 0.5
    """Probability from which a pixel belongs to the teacher's mask (BoxTeacher: 0.5)."""

    def __post_init__(self) -> None:
        require_at_least(0, weight=self.weight, warmup_steps=self.warmup_steps)
        require_shares(momentum=self.momentum)
        if not 0 < self.mask_threshold < 1:
            raise ValueError(f"mask_threshold is {self.mask_threshold}; it is above 0 and below 1")
        if self.momentum == 1:
            raise ValueError("momentum is 1: the teacher would stay as it began; give less")

    @property
    def used(self) -> bool:
        """Whether there is a teacher."""
        return self.weight > 0

    def weights(self, step: int, *, of: int) -> dict[str, float]:
        """Weight of its loss at `step` (0 first) of a stage of `of` steps; none without a teacher."""
        if not self.used:
            return {}
        return {"loss_pseudo_mask": self.weight if step >= min(self.warmup_steps, of // 2) else 0.0}


def box_only_weights(
    box_losses: BoxLossesConfig, teacher: TeacherConfig, step: int, *, of: int
) -> dict[str, float]:
    """Weight of every loss that objects without masks give at `step` (0 first) of a stage of `of` steps."""
    return box_losses.weights(step, of=of) | teacher.weights(step, of=of)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where a run writes: `checkpoint.pt`, `log.csv` and `tensorboard/` in `dir`."""

    dir: str = "build/train"
    checkpoint_every: int = 500
    """Steps between checkpoints; one more is written at the end, and one when the run is stopped."""
    log_every: int = 20
    """Steps over which a row of `log.csv` is the mean."""
    tensorboard: bool = True

    def __post_init__(self) -> None:
        require_at_least(1, checkpoint_every=self.checkpoint_every, log_every=self.log_every)


@dataclass(frozen=True, kw_only=True)
class TransferValidationConfig:
    """What `--validate-transfer` tries; see `training.experiments.transfer_form`. No part of a training."""

    groups: int = 3
    """Set A is dealt into so many groups of classes; one of them is held out at a time."""
    folds: int = 1
    """Groups held out, one after the other. 1 to `groups`."""
    steps: int = 300
    """Steps of the mask branch in each form."""
    candidates: str = "all"
    """"all", or names of forms with commas between."""

    def __post_init__(self) -> None:
        if self.groups < 2:
            raise ValueError(f"groups is {self.groups}; give 2 or more, since one group is held out")
        if not 1 <= self.folds <= self.groups:
            raise ValueError(f"folds is {self.folds}; give 1 to {self.groups}, the number of groups")
        require_at_least(1, steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything a training follows from, beside the data itself."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    loss_weights: LossWeightsConfig = field(default_factory=LossWeightsConfig)
    box_losses: BoxLossesConfig = field(default_factory=BoxLossesConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    validate_transfer: TransferValidationConfig = field(default_factory=TransferValidationConfig)
    seed: int = 0
    """Of the weights' start, the order of the images, their augmentation and the sampling of RoIs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """bfloat16: convolutions and matrix products under autocast; the weights stay float32. auto: bfloat16
    where the processor computes it, float32 elsewhere; a run that goes on stays with what it began."""
    channels_last: bool = False
    """Memory format of the convolutions: faster on recent GPUs, and on CPUs with bfloat16 units."""
    threads: int = 0
    """Threads of one operation on the CPU. 0: as torch chooses (OMP_NUM_THREADS, or every core)."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; give a number from 0 to 2^63 - 1")
        if self.schedule.classes_steps and not self.data.start_from:
            raise ValueError(
                f"schedule.classes_steps is {self.schedule.classes_steps}, which trains classes that the network does "
                "not know yet; name it in data.start_from (see training.recipes.grow)"
            )
        if self.model.transfer.kept_mean and self.schedule.end_to_end_steps + self.schedule.detector_steps:
            raise ValueError(
                "model.transfer.kept_mean holds the mean of detection weights, which end_to_end_steps and "
                "detector_steps move; set kept_mean to false, or these steps to 0"
            )
        if self.data.features and not self.augment.views:
            raise ValueError(
                f"data.features is {self.data.features}, but augment.views is 0: views that never come again are not "
                "kept; set augment.views, such as 4, or leave data.features out"
            )
        of_boxes = self.box_losses.used or self.teacher.used
        if of_boxes and (self.model.mask.stage_rois, self.model.mask.train_on) == ("set_a", "proposals"):
            raise ValueError(
                "model.mask.stage_rois is set_a, which leaves no RoI of objects without masks, but box_losses or "
                "teacher learns from them; set stage_rois to all, or these weights to 0"
            )
        if self.threads < 0:
            raise ValueError(f"threads is {self.threads}; give 0 (as torch chooses) or more")
        longest = self.model.input.max_size
        if any(side > longest for side in self.augment.min_sizes):
            raise ValueError(
                f"augment.min_sizes is {list(self.augment.min_sizes)}, but model.input.max_size bounds the longer side "
                f"to {longest}; give smaller ones, or a larger max_size"
            )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """The configuration in the TOML file at `path`, with `overrides` such as "schedule.mask_steps=800".

    Raises:
        ValueError: no such file, no TOML, an unknown key (with the nearest known one), a wrong type or value.
    """
    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(str(p) for p in DEFAULT_CONFIG.parent.glob("*.toml")))
        raise ValueError(f"{path}: no such configuration file; there are {known or 'none'}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        from_plain(TrainingConfig, values)  # a mistake in the file is told apart from one in an override
    except ValueError as error:  # a TOML or encoding error is one
        raise ValueError(f"{path}: {error}") from error
    for override in overrides:
        _apply(values, override)
    return from_plain(TrainingConfig, values)


def changed(config: TrainingConfig, changes: Mapping[str, Any] | Sequence[str]) -> TrainingConfig:
    """`config` with dotted keys set: {"schedule.mask_steps": 800}, or ["schedule.mask_steps=800"] as on command lines.

    A table in a mapping takes the place of the whole one, so that {} is its defaults; one in a text changes the keys
    that it has. The errors are those of `load_config`.
    """
    values = to_dict(config)
    if isinstance(changes, Mapping):
        for dotted, value in changes.items():
            *tables, key = dotted.split(".")
            table = values
            for name in tables:
                table = table.setdefault(name, {})
            table[key] = value
    else:
        for override in changes:
            _apply(values, override)
    return from_plain(TrainingConfig, values)


def to_dict(config: TrainingConfig) -> dict[str, Any]:
    """Nested plain values, as they go into the checkpoint."""
    plain: dict[str, Any] = to_plain(config)
    return plain


def config_from_dict(values: Mapping[str, Any]) -> TrainingConfig:
    """Inverse of `to_dict`, with the same errors as `load_config`."""
    return from_plain(TrainingConfig, values)


MAY_CHANGE = (
    "output.", "validate_transfer.", "data.workers", "data.val_", "data.names", "data.decode_first",
    "data.features", "device", "threads", "schedule.accumulate",
)  # fmt: skip
"""Keys that a resumed training may have otherwise: what they change is not the way of the weights.

`device`, `threads` and `schedule.accumulate` change rounding, and are allowed because a machine may be all there is.
"""


def differing_keys(before: TrainingConfig, now: TrainingConfig, *, step: int) -> list[tuple[str, Any, Any]]:
    """Where a training that is to go on from `step` differs from the one so far: (key, its value before, now).

    Left out are keys of `MAY_CHANGE`, and the number of steps of stages as long as the same steps of the
    same stages are done: a training may be made longer, or get a further stage.
    """
    old, new = _in_force(before), _in_force(now)
    keys = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if before.schedule.steps_done(step) == now.schedule.steps_done(step):
        keys = [key for key in keys if key not in [f"schedule.{stage}_steps" for stage in STAGES]]
    return [(key, old.get(key), new.get(key)) for key in keys]


def _in_force(config: TrainingConfig) -> dict[str, Any]:
    """Every key; of those whose absence means a number by other keys, this number."""
    rpn = config.model.rpn
    train, test = rpn.before_nms(one_level=config.model.box.head == "res5")
    return flat(to_dict(config)) | {"model.rpn.pre_nms_train": train, "model.rpn.pre_nms_test": test}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one "key.of.table=value" in the nested `values`."""
    path, sign, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not sign or not all(keys):
        raise ValueError(f"{override!r}: expected key.of.table=value, such as schedule.mask_steps=800")
    change: Any = _parsed(text.strip(), _takes_text(keys))
    for key in reversed(keys):
        change = {key: change}
    _merge(values, change)


def _parsed(text: str, as_text: bool) -> Any:
    """The value of an override: TOML where it is that, else (names, paths) the text itself."""
    quoted = text[:1] in ("'", '"')
    if as_text and not quoted:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _takes_text(keys: Sequence[str]) -> bool:
    """Whether the field at `keys` is a string, so that 2017 is the name of a folder."""
    hint: Any = TrainingConfig
    for key in keys:
        if not is_dataclass(hint):
            return False
        hint = get_type_hints(hint).get(key)
    if get_origin(hint) in (Union, types.UnionType):
        return str in get_args(hint)
    return hint is str


def _merge(values: dict[str, Any], change: Mapping[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value
