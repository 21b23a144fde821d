"""Memory of a training: that what is freed is kept, and the settings that need less where it runs out, by name."""

import ctypes
import sys

import torch

from training.config import TrainingConfig
from training.distributed import Group


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for the next step, in this process and those it forks; whether it does.

    By itself it gives the end of the heap back to the kernel, which clears the pages when they are asked for anew:
    7 000 of them in a step of the drawn set, an eighth of a step of the mask branch. Tensors above 32 MiB still go
    back, or a large network would need a tenth more memory. Nothing that is computed changes. False where there is no
    glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    return bool(mallopt(mmap_threshold, 32 * 2**20) and mallopt(trim_threshold, 2**31 - 1))


def out_of_memory(error: BaseException) -> bool:
    """Whether memory, of a GPU or of the machine, ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def memory_advice(config: TrainingConfig, group: Group) -> str:
    """Which settings to change where memory ran out, the one that changes nothing else first."""
    advice = []
    parts = 2 * config.schedule.accumulate
    if parts <= config.schedule.batch_size // group.size:
        advice.append(f"schedule.accumulate={parts} (the same training, in more parts a step)")
    if config.precision == "float32":
        advice.append("precision=bfloat16")
    shorter_side = "smaller augment.min_sizes" if config.augment.min_sizes else "min_size"
    advice += [f"a smaller model.input.max_size and {shorter_side}", "fewer model.box.rois_per_image"]
    return f"Try {', '.join(advice[:-1])}, or {advice[-1]}"
