"""The state of every random generator as tensors, so that a checkpoint read with `weights_only=True` holds it."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

RandomState = dict[str, Any]
"""Tensors by the name of their generator; "cuda" is a list, one tensor a device."""


def seed_all(seed: int) -> None:
    """Start all generators from `seed` (0 .. 2^63 - 1)."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_state() -> RandomState:
    """The generators of torch (CPU, and CUDA where it is in use), of Python and of numpy."""
    _, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": _optional(gauss),
        "numpy": torch.tensor([*numpy_state["state"]["key"].tolist(), numpy_state["state"]["pos"]]),
        "numpy_gauss": _optional(numpy_state["gauss"] if numpy_state["has_gauss"] else None),
    }


def restore_random_state(state: RandomState) -> None:
    """Set all generators to what `random_state` returned. CUDA's only where as many devices are there."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate((3, tuple(state["python"].tolist()), _number(state["python_gauss"])))
    words, gauss = state["numpy"].tolist(), _number(state["numpy_gauss"])
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": np.array(words[:-1], dtype=np.uint32), "pos": words[-1]},
            "has_gauss": int(gauss is not None),
            "gauss": 0.0 if gauss is None else gauss,
        }
    )


def _optional(number: float | None) -> Tensor:
    return torch.tensor([] if number is None else [number], dtype=torch.float64)


def _number(tensor: Tensor) -> float | None:
    return float(tensor[0]) if tensor.numel() else None
