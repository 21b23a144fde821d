"""State dicts of torchvision's detectors: read, brought to the present names, normalisations folded.

Its files are of three ages. Those published in 2019 have names that torchvision has changed since and were trained with
normalisations of epsilon 0; the second detectors (v2, 2022) normalise in the pyramid and the heads too.
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import WeightsEnum

State = dict[str, Tensor]

EPSILON = 1e-5
"""Of our normalisations, and of torchvision's but for the files of 2019."""

_OLD_NAMES = (
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
)
_OLD_MASK_NAME = re.compile(r"^roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)$")


def read_state(path: str | Path, *, nested: bool = True) -> State:
    """Tensors by name from a state dict, or from a checkpoint of torchvision's own training script ("model" in it; such
    a nested one not where `nested` is false).

    Raises:
        ValueError: no such file, no file that torch can read, or something else in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; expected a state dict of torchvision, or its training's checkpoint"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the script keeps its options
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ValueError(f"{path}: not a file of tensors that torch can read: {first_line}") from error
    if nested and isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a state dict (tensors by name), found {type(state).__name__}")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def downloaded(weights: WeightsEnum, asked: str) -> State:
    """State dict of torchvision's `weights`, from the hub's cache or the network; ValueError where out of reach."""
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except OSError as error:  # urllib.error.URLError is one
        file_name = weights.url.rsplit("/", 1)[-1]
        raise ValueError(
            f"weights {asked!r} could not be downloaded ({error}). Bring the file {file_name} ({weights.url}) "
            "to this machine and give its path"
        ) from error


def has_old_names(state: State) -> bool:
    """Whether `state` is of a file of 2019, whose normalisations have epsilon 0."""
    return any(re.match(old, key) for key in state for old, _ in _OLD_NAMES)


def with_present_names(state: State) -> State:
    """The same tensors under the names that torchvision gives them today."""
    renamed: State = {}
    for key, value in state.items():
        for old, new in _OLD_NAMES:
            key = re.sub(old, new, key)
        if match := _OLD_MASK_NAME.match(key):
            key = f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}"
        renamed[key] = value
    return renamed


def with_epsilon(state: State, epsilon: float) -> State:
    """`state` with the scales of its normalisations such that `EPSILON` gives what `epsilon` gave.

    weight / sqrt(var + epsilon) = weight' / sqrt(var + EPSILON). A channel without variance and epsilon, whose answer
    is not a number, has no such scale: ValueError.
    """
    if epsilon == EPSILON:
        return state
    changed = dict(state)
    for key, variance in state.items():
        name, _, last = key.rpartition(".")
        if last == "running_var":
            factor = ((variance.double() + EPSILON) / (variance.double() + epsilon)).sqrt()
            if not bool(factor.isfinite().all()):
                raise ValueError(
                    f"{name} has channels without variance, which epsilon {epsilon:g} divides by zero; the weights "
                    f"were trained with another: try epsilon {EPSILON:g}"
                )
            weight = state[f"{name}.weight"]
            changed[f"{name}.weight"] = (weight.double() * factor).to(weight.dtype)
    return changed


def under(state: State, prefix: str) -> State:
    """The tensors below `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def convolution(state: State, name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution `name`.0, the normalisation `name`.1 folded into it where there is one."""
    weight = state[f"{name}.0.weight"]
    bias = state.get(f"{name}.0.bias")
    if f"{name}.1.running_var" not in state:
        return weight, weight.new_zeros(weight.shape[0]) if bias is None else bias
    norm = under(state, f"{name}.1.")
    scale = norm["weight"].double() * torch.rsqrt(norm["running_var"].double() + EPSILON)
    before = torch.zeros_like(scale) if bias is None else bias.double()
    shift = norm["bias"].double() + (before - norm["running_mean"].double()) * scale
    folded = weight.double() * scale.view(-1, 1, 1, 1)
    return folded.to(weight.dtype), shift.to(weight.dtype)


def detector_backbone(state: State) -> State:
    """Body and pyramid of a detector, without the prefix: normalisations of `EPSILON`, the pyramid's folded.

    Epsilon was 0 in the files of 2019, told by their names, and `EPSILON` in all others, as torchvision has it.
    """
    state = with_epsilon(with_present_names(state), 0.0 if has_old_names(state) else EPSILON)
    parts = under(state, "backbone.")
    normalised = [key.removesuffix(".1.running_var") for key in parts if key.endswith(".1.running_var")]
    for name in [name for name in normalised if name.startswith("fpn.")]:
        weight, bias = convolution(parts, name)
        parts = {key: value for key, value in parts.items() if not key.startswith(f"{name}.")}
        parts |= {f"{name}.0.weight": weight, f"{name}.0.bias": bias}
    return parts


def count_of_blocks(state: State, name: str) -> int:
    """How many convolutions `name`.0, `name`.1, ... there are."""
    count = 0
    while f"{name}.{count}.0.weight" in state:
        count += 1
    return count
