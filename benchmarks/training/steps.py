"""Steps of a training, timed one by one, and the memory they take."""

import time
from abc import ABC, abstractmethod

import torch
from torch import nn

from benchmarks.clock import wait
from benchmarks.memory import forget_peak, peak_mib, resident_mib, settle


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
        seconds, losses, rois = [], [], []
        hook = None
        if self.mask_module is not None:
            hook = self.mask_module.register_forward_pre_hook(
                lambda _m, given: rois.append(given[0].shape[0])
            )
        for _ in range(count):
            wait(self.device)
            begin = time.perf_counter()
            losses.append(self.step(self._done)["loss"])
            wait(self.device)
            seconds.append(time.perf_counter() - begin)
            self._done += 1
        if hook is not None:
            hook.remove()
        return {"seconds": seconds, "loss": losses, "mask_rois": rois}

    def memory(self) -> dict[str, float]:
        """MiB: resident before the first step, the most since then; on a GPU both of its own, too."""
        found = {"before_mib": self._before, "peak_mib": peak_mib()}
        if self.device.type == "cuda":
            found["cuda_before_mib"] = self._cuda_before
            found["cuda_peak_mib"] = torch.cuda.max_memory_allocated(self.device) / 2**20
        return found

    def _ready(self) -> None:
        self._done = 0
        settle()
        forget_peak()
        self._before = resident_mib()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._cuda_before = torch.cuda.memory_allocated(self.device) / 2**20
