"""How objects without masks (set B) train the mask branch: which losses, with which weights, from which step on."""

from dataclasses import dataclass


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
        _require_not_negative(
            projection=self.projection, pairwise=self.pairwise, warmup_steps=self.warmup_steps
        )
        _require_share(colour_threshold=self.colour_threshold, margin=self.margin)

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
    """A moving average of the network, whose masks of objects without masks become targets (BoxTeacher,
    Cheng et al., 2023).
    """

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
        _require_not_negative(weight=self.weight, warmup_steps=self.warmup_steps)
        _require_share(momentum=self.momentum)
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


def _require_not_negative(**values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} is {value}; give 0 or more")


def _require_share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it is a share, between 0 and 1")
