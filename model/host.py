"""Between host and device: many small tensors in one copy, and the few places where the host waits for the device.

On a GPU the host runs ahead and only launches; it waits where it must know a number that the device computes. Within a
training step that is allowed in `read` and under `waiting` alone, which are:

    model.boxes.rois.arranged      how many RoIs of each kind an image has, once a step
    model.keypoints.head           how many RoIs have a keypoint inside, once a step
    model.boxes.rpn_training       the form of the anchors, in the first step alone
    model.masks.weight_transfer    which classes occur, where there are more than `FEW_CLASSES`
    training.run.Run.train_on      the figures of the step, once

`no_other_waits` makes every other wait an error.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes at a multiple of which each tensor of a packed buffer begins."""

Layout = tuple[torch.dtype, tuple[int, ...], int, int]
"""Of a tensor in a packed buffer: type, shape, first byte, number of bytes."""


def packed(tensors: Sequence[Tensor], *, pinned: bool = False) -> tuple[Tensor, list[Layout]]:
    """CPU tensors of any types and shapes copied into one buffer uint8 [bytes], and where each one lies in it.

    Args:
        tensors: on the CPU.
        pinned: in memory that a GPU reads by itself.
    """
    layouts: list[Layout] = []
    end = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        layouts.append((tensor.dtype, tuple(tensor.shape), end, size))
        end += -(-size // ALIGNMENT) * ALIGNMENT
    buffer = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
    for tensor, (_, _, start, size) in zip(tensors, layouts, strict=True):
        if size:
            buffer[start : start + size].copy_(tensor.contiguous().view(-1).view(torch.uint8))
    return buffer, layouts


def unpacked(buffer: Tensor, layouts: Sequence[Layout]) -> list[Tensor]:
    """The tensors of `packed` as views of the buffer, on whichever device that is by now."""
    return [
        buffer[start : start + size].view(dtype).view(shape) if size else buffer.new_zeros(shape, dtype=dtype)
        for dtype, shape, start, size in layouts
    ]


def moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """CPU tensors on `device`: themselves on a CPU, else in one copy, for which the host does not wait."""
    if device.type == "cpu":
        return list(tensors)
    buffer, layouts = packed(tensors, pinned=device.type == "cuda")
    return unpacked(buffer.to(device, non_blocking=True), layouts)


def waiting() -> AbstractContextManager[None]:
    """Within, the host may wait for a GPU whatever `no_other_waits` says."""
    return _in_sync_mode(0)


def read(values: Tensor) -> Any:
    """The numbers of a tensor as nested lists: the host waits until the device has computed them."""
    with waiting():
        return values.tolist()


def no_other_waits() -> AbstractContextManager[None]:
    """Within, whatever makes the host wait for a GPU but this module's own places raises RuntimeError; without a GPU
    nothing does."""
    return _in_sync_mode(2)


@contextmanager
def _in_sync_mode(mode: int) -> Iterator[None]:
    before = _sync_mode(mode)
    try:
        yield
    finally:
        _sync_mode(before)


def _sync_mode(mode: int) -> int:
    """Set torch's `cuda.set_sync_debug_mode` (0 default, 1 warn, 2 error); the mode before. 0 where CUDA is unused."""
    if not torch.cuda.is_initialized():
        return 0
    before = torch.cuda.get_sync_debug_mode()
    if before != mode:
        torch.cuda.set_sync_debug_mode(mode)
    return before
