"""What crosses between host and device for a batch: all images in by one copy, all answers out by one copy.

A GPU reads and writes only memory that the system does not move (pinned), and goes on computing meanwhile; asking for
such memory takes milliseconds, so it is kept from one batch to the next. On a CPU nothing is copied at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

MOST_KEPT = 1 << 28
"""Bytes of pinned memory that are kept for one direction: 43 images of 1080p. A larger batch, which a few photographs
of 64 megapixels are, passes through ordinary memory."""

Pixels = np.ndarray | Tensor
"""uint8 [h, w, 3], RGB: an array on the host, or a tensor that may lie on the device already."""


class Copies(Protocol):
    """Brings images in and words out."""

    def inwards(self, images: Sequence[Pixels]) -> list[Tensor]:
        """The images in order, uint8 [h, w, 3], on the device."""

    def outwards(self, words: Tensor) -> np.ndarray:
        """The words of a device's tensor, int32 [n], on the host; nobody else's memory on a GPU."""


def copies_for(device: torch.device) -> Copies:
    """The way for a device."""
    return InPlace() if device.type == "cpu" else KeptCopies(device)


class InPlace:
    """For a CPU: the very pixels, the very words."""

    def inwards(self, images: Sequence[Pixels]) -> list[Tensor]:
        """See `Copies`."""
        return [image if isinstance(image, Tensor) else torch.from_numpy(image) for image in images]

    def outwards(self, words: Tensor) -> np.ndarray:
        """See `Copies`."""
        array: np.ndarray = words.numpy()
        return array


class KeptCopies:
    """For a GPU: through pinned memory that is kept, one copy each way.

    Not for two threads at a time.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        allocate: Callable[[int], Tensor] | None = None,
        mark: Callable[[], Callable[[], None]] | None = None,
    ) -> None:
        """`allocate` gives so many bytes of pinned memory, uint8; `mark` marks where the device's work stands now, and
        gives what waits until the device has come to that mark. Both are CUDA's where they are None."""
        self._device = device
        self._mark = mark or (lambda: _mark_of(device))
        self._in, self._out = _Kept(allocate or _pinned), _Kept(allocate or _pinned)

    def inwards(self, images: Sequence[Pixels]) -> list[Tensor]:
        """See `Copies`. Tensors are left where they lie; the copy of the others is under way when this returns."""
        arrays = [image for image in images if isinstance(image, np.ndarray)]
        parts: list[Tensor] = []
        if arrays:
            on_host = self._in.memory(sum(array.nbytes for array in arrays))
            at = 0
            for array in arrays:
                on_host.numpy()[at : at + array.nbytes].reshape(array.shape)[...] = array
                at += array.nbytes
            on_device = torch.empty(len(on_host), dtype=torch.uint8, device=self._device)
            on_device.copy_(on_host, non_blocking=True)
            self._in.wait = self._mark()
            parts = list(on_device.split([array.nbytes for array in arrays]))
        shapes = iter([array.shape for array in arrays])
        copied = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        return [image if isinstance(image, Tensor) else next(copied) for image in images]

    def outwards(self, words: Tensor) -> np.ndarray:
        """See `Copies`."""
        on_host = self._out.memory(4 * words.numel()).view(torch.int32)
        on_host.copy_(words, non_blocking=True)
        self._mark()()
        array: np.ndarray = on_host.numpy().copy()  # the next batch writes over what is kept
        return array


class _Kept:
    """Pinned memory that grows with the largest batch, up to MOST_KEPT, and is not written to before it was read."""

    def __init__(self, allocate: Callable[[int], Tensor]) -> None:
        self.wait: Callable[[], None] | None = None
        self._allocate = allocate
        self._memory: Tensor | None = None

    def memory(self, count: int) -> Tensor:
        """uint8 [count], free to be written to."""
        if self.wait is not None:
            self.wait()
            self.wait = None
        if count > MOST_KEPT:
            return torch.empty(count, dtype=torch.uint8)
        if self._memory is None or self._memory.numel() < count:
            self._memory = None  # before the larger one is asked for
            self._memory = self._allocate(1 << max(count - 1, 0).bit_length())
        return self._memory[:count]


def _pinned(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.uint8, pin_memory=True)


def _mark_of(device: torch.device) -> Callable[[], None]:
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize
