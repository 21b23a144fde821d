"""The dense parts of a network, and what else may compute them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskx_compiled import CompiledParts
from model.build import build_network
from model.config import ModelConfig
from model.inference import Inference
from model.serving import REDUCIBLE, prepared_for_serving

LEVELS = 5
"""Of the pyramid, P2 to P6."""
PARTS = ("trunk", "box_head", "mask_head")
BOUNDS = {"float32": 1e-3, "bfloat16": 0.2}
"""How far a part's answer may be from eager float32: the root mean square of the differences, in shares of that of the
answer. A tensor that has nothing to do with the answer is off by 1 or more.

Another order of the same sums reached 3e-4 in the trunk of calibrated random weights, 5e-6 in others. bfloat16 has 8
bits of mantissa, and each rounding errs by up to 0.4 %; after the 60 layers of a trunk our own reached 3 to 10 % over
six inputs and three instruction sets (oneDNN's AVX2, AVX-512 and its bfloat16 units). The largest single difference
reached 16 % of the largest value, and said more about the processor.
"""

Given = Mapping[str, Sequence[Tensor]]
"""What each part is given, by the part's name."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The dense parts as functions.

    trunk: canvas [N, 3, H, W] -> the pyramid's levels, then the RPN's logits of each level, then its deltas, float32.
    box_head: pooled [R, F, 7, 7] -> [R, D] float32. mask_head: pooled [R, F, 14, 14], mask weights [R, F], bias ->
    probabilities [R, M, M] float32.
    """

    trunk: Callable[[Tensor], Sequence[Tensor]]
    box_head: Callable[[Tensor], Tensor]
    mask_head: Callable[[Tensor, Tensor, Tensor], Tensor]

    def parts(self) -> CompiledParts:
        """As the handler takes compiled parts."""
        most = {"most_images": 1024}  # as many as are asked for
        return CompiledParts(most, {name: Run(getattr(self, name)) for name in PARTS})


class Run:
    """A function as a library of the handler."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """The function's answers."""
        return answers_of(self._function(*inputs))


class Trunk(nn.Module):
    """Backbone and RPN head in one."""

    def __init__(self, network: Inference) -> None:
        super().__init__()
        self.backbone, self.head = network.backbone, network.rpn.head

    def forward(self, canvas: Tensor) -> list[Tensor]:
        """As `Dense.trunk`."""
        levels: dict[str, Tensor] = self.backbone(canvas)
        logits, deltas = self.head(list(levels.values()))
        return list(levels.values()) + logits + deltas


class BoxHead(nn.Module):
    """The box head with float32 answers."""

    def __init__(self, network: Inference) -> None:
        super().__init__()
        self.head = network.box_head

    def forward(self, pooled: Tensor) -> Tensor:
        """As `Dense.box_head`."""
        hidden: Tensor = self.head(pooled)
        return hidden.float()


class MaskHead(nn.Module):
    """The mask branch up to the probabilities."""

    def __init__(self, network: Inference) -> None:
        super().__init__()
        self.branch = network.mask_branch

    def forward(self, pooled: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        """As `Dense.mask_head`."""
        return torch.sigmoid(self.branch(pooled, rows, bias))


def modules_of(network: Inference) -> dict[str, nn.Module]:
    """The parts by their names; they share their weights with the network."""
    return {"trunk": Trunk(network), "box_head": BoxHead(network), "mask_head": MaskHead(network)}


def eager(network: Inference) -> Dense:
    """The network's own modules."""
    return Dense(**modules_of(network))


def network_in(path: Path, config: ModelConfig, classes: int) -> Inference:
    """The network of a maskx.pt as a Python module, with the very weights of the file, in evaluation mode.

    Raises RuntimeError, from torch, where the file is not of that configuration.
    """
    made = prepared_for_serving(build_network(config, num_classes=classes).eval().inference())
    written = torch.jit.load(str(path), map_location="cpu").state_dict()
    # TorchScript writes the canvas' statistics too, which the configuration holds.
    made.load_state_dict({name: one for name, one in written.items() if not name.startswith("canvas.")})
    return made


@torch.no_grad()
def cast(network: Inference, precision: str) -> None:
    """The parts that may be cast in that precision, every weight channels_last, as the handler has them."""
    dtype: torch.dtype = getattr(torch, precision)
    for name in REDUCIBLE:
        network.get_submodule(name).to(dtype)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Recorded:
    """`dense` that keeps what each part was last given."""

    def __init__(self, dense: Dense) -> None:
        self.given: dict[str, tuple[Tensor, ...]] = {}
        self._dense = dense

    def dense(self) -> Dense:
        """The functions that keep."""
        return Dense(**{name: self._keeping(name) for name in PARTS})

    def _keeping(self, name: str) -> Callable[..., Any]:
        run: Callable[..., Any] = getattr(self._dense, name)

        def keeping(*given: Tensor) -> Any:
            self.given[name] = given
            return run(*given)

        return keeping


@torch.inference_mode()
def differences(given: Given, expected: Dense, other: Dense) -> dict[str, float]:
    """Of each part, how far two engines' answers to the same tensors are apart, as in `BOUNDS`; of the trunk, of the
    worst of its answers. Infinite where shapes differ or a number is none."""
    found = {}
    for name, tensors in given.items():
        pair = (answers_of(getattr(dense, name)(*tensors)) for dense in (expected, other))
        found[name] = max(difference(a, b) for a, b in zip(*pair, strict=True))
    return found


def difference(expected: Tensor, got: Tensor) -> float:
    """See `differences`."""
    if expected.shape != got.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    if not expected.numel():
        return 0.0
    return float((expected.float() - got.float()).norm() / expected.float().norm())


def answers_of(answer: Any) -> list[Tensor]:
    """One tensor or several, as a list."""
    return [answer] if isinstance(answer, Tensor) else list(answer)
