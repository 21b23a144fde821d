"""Stages of a run and the learning rate at each of their steps."""

import math
from dataclasses import dataclass
from typing import Literal

from model.dataclass_io import require_at_least, require_shares

Stage = Literal["end_to_end", "detector", "mask", "classes"]
STAGES: tuple[Stage, ...] = ("end_to_end", "detector", "mask", "classes")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long, and how the learning rate moves; it starts anew in every stage.

    But for the steps, defaults are those of the paper's own code (R-50-FPN, 16 images a batch).
    """

    end_to_end_steps: int = 0
    """Everything at once (Sec. 3.3); the paper: 90 000. 0 leaves a stage out."""
    detector_steps: int = 0
    """Stage-wise training, first part: all but the mask branch."""
    mask_steps: int = 0
    """Stage-wise training, second part: the mask branch and T alone, on a frozen detector."""
    classes_steps: int = 0
    """The box branch's rows of classes that `data.start_from` does not have, and nothing else: T then gives them
    their masks (Sec. 5: masks of classes that have boxes alone)."""
    batch_size: int = 16
    """Images a step, of all processes together (the paper: 16 on 8 GPUs)."""
    accumulate: int = 1
    """Parts in which each process works through its images of a step, for less memory: the gradient is that of all at
    once, which from 2 parts on costs a further pass forward. Batch statistics, where they are trained, are a part's."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises linearly; at most half of a stage is taken."""
    warmup_start: float = 1 / 3
    """Share of the learning rate at which the warm-up starts."""
    decay: Literal["multi_step", "cosine", "none"] = "multi_step"
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    """multi_step: shares of a stage's steps after which the rate is multiplied by `gamma` (60k and 80k of 90k)."""
    gamma: float = 0.1
    final: float = 0.0
    """cosine: share of the learning rate that is left at the stage's end."""

    def __post_init__(self) -> None:
        for stage in STAGES:
            if self.steps(stage) < 0:
                raise ValueError(f"{stage}_steps is {self.steps(stage)}; give 0 (no such stage) or more")
        require_at_least(1, batch_size=self.batch_size)
        if not 1 <= self.accumulate <= self.batch_size:
            raise ValueError(
                f"accumulate is {self.accumulate}; give 1 to {self.batch_size}, the batch_size: each part has an image"
            )
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; give 0 (no warm-up) or more")
        require_shares(warmup_start=self.warmup_start, gamma=self.gamma, final=self.final)
        if any(not 0 < m < 1 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise ValueError(
                f"milestones are {list(self.milestones)}; give rising shares of a stage between 0 and 1"
            )

    def steps(self, stage: Stage) -> int:
        """Steps of one stage."""
        steps: int = getattr(self, f"{stage}_steps")
        return steps

    @property
    def total_steps(self) -> int:
        """Steps of all stages together."""
        return sum(self.steps(stage) for stage in STAGES)

    def steps_done(self, step: int) -> dict[Stage, int]:
        """How many steps of each stage are done once `step` steps of the whole run are."""
        done: dict[Stage, int] = {}
        for stage in STAGES:
            done[stage] = min(step, self.steps(stage))
            step -= done[stage]
        return done

    def rate(self, step: int, *, of: int) -> float:
        """Share of the learning rate at `step` (0 first) of a stage of `of` steps."""
        warmup = min(self.warmup_steps, of // 2)
        rise = self.warmup_start + (1 - self.warmup_start) * step / warmup if step < warmup else 1.0
        if self.decay == "cosine":
            progress = (step - warmup) / max(of - warmup, 1) if step >= warmup else 0.0
            return rise * (self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2)
        if self.decay == "multi_step":
            return rise * self.gamma ** sum(step >= milestone * of for milestone in self.milestones)
        return rise
