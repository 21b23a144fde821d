"""What to do where memory runs out: the settings that need less of it, by name."""

import torch

from training.config import TrainingConfig
from training.distributed import Group


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
    advice += ["a smaller model.input.max_size and min_size", "fewer model.box.rois_per_image"]
    return f"Try {', '.join(advice[:-1])}, or {advice[-1]}"
