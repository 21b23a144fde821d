"""Steps of a training, timed one by one, and the memory they take."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from benchmarks.clock import timed
from benchmarks.memory import cuda_peak_mib, forget_cuda_peak, forget_peak, peak_mib, resident_mib, settle


class StepSide(ABC):
    """Steps over batches that lie in memory, on one device; the batches come round again."""

    device: torch.device
    mask_module: nn.Module | None = None
    """Its first input is the RoIs of the mask loss, which are counted; None: they are not."""

    @abstractmethod
    def step(self, number: int) -> dict[str, float]:
        """One step; its figures, "loss" among them."""

    def steps(self, count: int) -> dict[str, list[float]]:
        """Seconds, summed loss and number of RoIs in the mask loss of each of `count` further steps."""
        losses: list[float] = []
        rois: list[float] = []

        def further() -> None:
            losses.append(self.step(self._done)["loss"])
            self._done += 1

        counted = self.mask_module or nn.Identity()
        hook = counted.register_forward_pre_hook(lambda _m, given: rois.append(given[0].shape[0]))
        seconds = timed(further, count, self.device)
        hook.remove()
        return {"seconds": seconds, "loss": losses, "mask_rois": rois}

    def memory(self) -> dict[str, float]:
        """MiB: resident before the first step, the most since then; on a GPU both of its own, too."""
        found = {"before_mib": self._before, "peak_mib": peak_mib()}
        cuda = cuda_peak_mib(self.device)
        return (
            found if cuda is None else found | {"cuda_before_mib": self._cuda_before, "cuda_peak_mib": cuda}
        )

    def _ready(self) -> None:
        self._done = 0
        settle()
        forget_peak()
        self._before = resident_mib()
        forget_cuda_peak(self.device)
        if self.device.type == "cuda":
            self._cuda_before = torch.cuda.memory_allocated(self.device) / 2**20
