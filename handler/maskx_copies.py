"""What crosses between host and device: a batch's images in one copy, all its answers in one.

On a GPU each copy costs the host more than its bytes do, so the images of a batch lie one after the other in one buffer
of pinned memory, which is kept from batch to batch, and the network answers in one piece (`packed` in maskx.pt). On a
CPU nothing is copied. Knows nothing of the server.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from maskx_answer import Detections

ALIGNED = 256
"""Bytes: where each image begins, as GPUs read best."""


class Copies:
    """The way in and out of one device; for one batch at a time.

    Args:
        device: that the network is on.
        staged: by way of kept buffers; None: where the device is no CPU.
    """

    def __init__(self, device: torch.device, *, staged: bool | None = None) -> None:
        self._device = device
        self._pinned = device.type == "cuda"
        self.staged = device.type != "cpu" if staged is None else staged
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._numbers = torch.empty(0, dtype=torch.float64)
        self._under_way: torch.cuda.Event | None = None

    def images_in(self, images: Sequence[np.ndarray | Tensor]) -> list[Tensor]:
        """uint8 [3, h, w] on the device of images uint8 [h, w, 3]; one that is there already stays as it is."""
        if not self.staged:
            return [_as_tensor(image).permute(2, 0, 1) for image in images]
        from_host = [image for image in images if isinstance(image, np.ndarray)]
        begins = [0]
        for pixels in from_host:
            begins.append(begins[-1] + -(-pixels.nbytes // ALIGNED) * ALIGNED)
        self._wait()
        self._bytes = self._grown(self._bytes, begins[-1])
        for begin, pixels in zip(begins, from_host, strict=False):
            np.copyto(self._bytes[begin : begin + pixels.nbytes].numpy().reshape(pixels.shape), pixels)
        there = self._bytes[: begins[-1]].to(self._device, non_blocking=True)
        self._note()
        placed = iter(begins)
        answer = []
        for image in images:
            if isinstance(image, np.ndarray):
                begin = next(placed)
                own = there[begin : begin + image.nbytes].view(image.shape)
            else:
                own = image
            answer.append(own.permute(2, 0, 1))
        return answer

    def out(self, numbers: Tensor) -> np.ndarray:
        """float64 [W] on the host, good until the next batch."""
        if not self.staged:
            return numbers.numpy()
        self._numbers = self._grown(self._numbers, numbers.numel())
        kept = self._numbers[: numbers.numel()]
        kept.copy_(numbers, non_blocking=True)
        self._note()
        self._wait()
        return kept.numpy()

    def _grown(self, kept: Tensor, count: int) -> Tensor:
        """The buffer, or one with half as much again as is asked for where it is too small."""
        if kept.numel() >= count:
            return kept
        return torch.empty(count + count // 2, dtype=kept.dtype, pin_memory=self._pinned)

    def _note(self) -> None:
        """Remembers how far the device's work has got, a copy of a kept buffer being the last of it."""
        if self._pinned:
            self._under_way = torch.cuda.Event()
            self._under_way.record(torch.cuda.current_stream(self._device))

    def _wait(self) -> None:
        """Until no copy of a kept buffer is under way, that of a batch that failed included."""
        if self._under_way is not None:
            self._under_way.synchronize()
            self._under_way = None


def _as_tensor(image: np.ndarray | Tensor) -> Tensor:
    return torch.from_numpy(image) if isinstance(image, np.ndarray) else image


def unpacked(numbers: np.ndarray, table: Sequence[Sequence[int]], *, keypoints: int) -> list[Detections]:
    """The detections of each image from what the network's `packed` answers, in arrays of their own.

    Args:
        numbers: float64 [W].
        table: of each image [D, boxes, scores, labels, offsets, counts, keypoints]: how many detections, and the place
            in `numbers` at which each of these begins: 4 D, D, D, D + 1 (where the runs of each mask begin, counted
            from `counts` on, and where the last ends), the run lengths, and 3 D K. -1: there are none.
        keypoints: K.
    """
    found = []
    for count, boxes, scores, labels, offsets, runs, points in table:
        ends, counts = np.zeros(count + 1, dtype=np.int64), np.zeros(0, dtype=np.int64)
        if offsets >= 0:
            ends = numbers[offsets : offsets + count + 1].astype(np.int64)
            counts = numbers[runs + ends[0] : runs + ends[-1]].astype(np.int64)
            ends -= ends[0]
        of_points = None
        if points >= 0:
            of_points = numbers[points : points + 3 * keypoints * count].astype(np.float32)
            of_points = of_points.reshape(count, keypoints, 3)
        found.append(
            Detections(
                boxes=numbers[boxes : boxes + 4 * count].astype(np.float32).reshape(count, 4),
                scores=numbers[scores : scores + count].astype(np.float32),
                labels=numbers[labels : labels + count].astype(np.int64),
                rle_counts=counts,
                rle_offsets=ends,
                keypoints=of_points,
            )
        )
    return found
