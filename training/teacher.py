"""The teacher: a moving average of the network under training (mean teacher; BoxTeacher, Cheng et al., 2023)."""

import copy
from typing import Any

import torch

from model.checkpoint import load_weights
from model.network import MaskXRCNN


class Teacher:
    """A second network whose weights and statistics follow those of the first; it gets no gradients.

    It begins as a copy, anew at each stage of a run. It keeps at most `momentum` of itself in a
    step: (1 + n) / (10 + n) at its n-th update where that is less, or it would long stay what it began as.
    """

    def __init__(self, network: MaskXRCNN, *, momentum: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.momentum = momentum
        self.updates = 0

    @torch.no_grad()
    def follow(self, network: MaskXRCNN) -> None:
        """One step of the average towards `network`; whole numbers (counts of batches) are taken over."""
        kept = min(self.momentum, (1 + self.updates) / (10 + self.updates))
        towards = network.state_dict()
        floats, their_floats = [], []
        for name, mine in self.network.state_dict().items():
            if mine.is_floating_point():
                floats.append(mine)
                their_floats.append(towards[name])
            else:
                mine.copy_(towards[name])
        torch._foreach_lerp_(floats, their_floats, 1.0 - kept)
        self.updates += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"model": self.network.state_dict(), "updates": self.updates}

    def restore(self, state: dict[str, Any], *, source: str) -> None:
        """Take up `state`; a ValueError names `source` where it is another network's."""
        load_weights(self.network, state["model"], source=source)
        self.updates = state["updates"]
