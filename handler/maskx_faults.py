"""What an exception of the network means: out of memory, a lost device, or something about the images it was given.

TorchScript turns PyTorch's own classes of exceptions into a RuntimeError, or into torch.jit.Error, with a trace that
quotes the source; so it is the last message in the text that tells.
"""

from __future__ import annotations

import re

OUT_OF_MEMORY_MARKS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
)
"""In messages of CUDA's allocator and of PyTorch's for CPUs (Linux, Windows)."""

LOST_DEVICE_MARKS = (
    "device-side assert",
    "illegal memory access",
    "illegal address",
    "illegal instruction",
    "invalid program counter",
    "misaligned address",
    "hardware stack error",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable ecc",
    "uncorrectable nvlink",
    "context is destroyed",
    "unknown error",
)
"""CUDA's errors after which the process must be ended and started again, as it says where it describes cudaError_t."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory for what was asked; fewer images may still find it."""
    return isinstance(error, MemoryError) or _says(error, OUT_OF_MEMORY_MARKS)


def is_lost_device(error: BaseException) -> bool:
    """Whether the GPU answers nothing more to this process."""
    return "cuda" in str(error).lower() and _says(error, LOST_DEVICE_MARKS)


def _says(error: BaseException, marks: tuple[str, ...]) -> bool:
    message = re.split(r"(?m)^[\w.]*(?:Error|Exception): ", str(error))[-1].lower()
    return any(mark in message for mark in marks)
