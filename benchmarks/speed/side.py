"""What both sides of the comparison can be asked, each in its own process: files in, plain values out."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.clock import timed
from benchmarks.memory import cuda_peak_mib, forget_cuda_peak, peak_mib, resident_mib, settle


class Side(ABC):
    """Image bytes -> JSON bytes on one device."""

    device: torch.device

    @abstractmethod
    def answer(self, data: Sequence[bytes]) -> list[bytes]:
        """The bodies of a batch."""

    @abstractmethod
    def stages(self, files: Sequence[str]) -> dict[str, float]:
        """Seconds of each stage of one batch."""

    @abstractmethod
    def masks_alone(self, probabilities_DMM: Tensor, boxes: Tensor, height: int, width: int) -> Sequence[Any]:
        """Mask probabilities and boxes in the image's pixels -> compressed run lengths."""

    def time(self, files: Sequence[str], warm_up: int = 0) -> dict[str, Any]:
        """Seconds of one batch, bytes in to JSON out, after `warm_up` others; detections of each image."""
        data, bodies = read(files), []
        for _ in range(warm_up):
            self.answer(data)
        (seconds,) = timed(lambda: bodies.extend(self.answer(data)))
        return {"seconds": seconds, "detections": [len(json.loads(body)["detections"]) for body in bodies]}

    def bodies(self, files: Sequence[str]) -> list[str]:
        """The answers themselves, JSON."""
        return [body.decode() for body in self.answer(read(files))]

    def repeat(self, files: Sequence[str], count: int, warm_up: int) -> list[float]:
        """Seconds of each of `count` batches, one after the other; a GPU's memory is counted anew."""
        forget_cuda_peak(self.device)
        data = read(files)
        return timed(lambda: self.answer(data), warm_up + count)[warm_up:]

    def time_masks(self, masks: str, height: int, width: int, repeat: int) -> list[float]:
        """Seconds of each of `repeat` runs of `masks_alone`; the file `masks` holds (probabilities, boxes)."""
        probabilities, boxes = (one.to(self.device) for one in torch.load(masks, weights_only=True))
        return timed(lambda: self.masks_alone(probabilities, boxes, height, width), repeat)

    def memory(self, settled: bool = False) -> dict[str, float]:
        """MiB held now and at most so far; `settled` collects garbage first. On a GPU its own memory, too."""
        if settled:
            settle()
        found = {"resident_mib": resident_mib(), "peak_mib": peak_mib()}
        cuda = cuda_peak_mib(self.device)
        return found if cuda is None else found | {"cuda_peak_mib": cuda}


def read(files: Sequence[str]) -> list[bytes]:
    """The contents of each."""
    return [Path(file).read_bytes() for file in files]
