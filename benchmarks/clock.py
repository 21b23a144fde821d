"""Seconds of what runs, its device waited for."""

import time
from collections.abc import Callable

import torch

CPU = torch.device("cpu")


def wait(device: torch.device) -> None:
    """Until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], count: int = 1, device: torch.device = CPU) -> list[float]:
    """Seconds of each of `count` runs, one after the other."""
    seconds = []
    for _ in range(count):
        wait(device)
        begin = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - begin)
    return seconds
