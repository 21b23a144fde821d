"""Which steps an optimiser makes: the table [optimiser] of a training's configuration."""

from dataclasses import dataclass
from typing import Literal

from model.dataclass_io import require_at_least


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """Stochastic gradient descent with momentum, or AdamW. Defaults: the paper's own code."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    """For 16 images a step; the highest of a stage (see [schedule])."""
    mask_learning_rate: float | None = None
    """Of stage "mask". Absent: `learning_rate`."""
    bias_rate: float = 1.0
    """Learning rate of biases, those of normalisations aside, in units of that of the weights. Detectron: 2."""
    momentum: float = 0.9
    """SGD's momentum; AdamW's betas are 0.9 and 0.999."""
    weight_decay: float = 1e-4
    """Not on biases and the scales of normalisations."""
    transfer_weight_decay: float | None = None
    """Of the weight transfer function T. Absent: `weight_decay`."""
    clip_norm: float = 0.0
    """The gradient's norm over all parameters is kept to this. 0: not clipped."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "mask_learning_rate"):
            if (rate := getattr(self, name)) is not None and rate <= 0:
                raise ValueError(f"{name} is {rate}; it must be above 0")
        require_at_least(
            0,
            weight_decay=self.weight_decay,
            transfer_weight_decay=self.transfer_weight_decay,
            clip_norm=self.clip_norm,
            bias_rate=self.bias_rate,
        )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it is at least 0 and below 1")
