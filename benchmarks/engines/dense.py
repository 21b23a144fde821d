"""The dense parts of a network, and a whole network of which another engine computes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function

from model.build import build_network
from model.config import ModelConfig
from model.inference import Inference
from model.serving import REDUCIBLE, prepared_for_serving

LEVELS = 5
"""Of the pyramid, P2 to P6."""
PARTS = ("trunk", "box_head", "mask_head")
BOUNDS = {"float32": 1e-4, "bfloat16": 0.1}
"""The largest difference of a part's answer from eager float32, in shares of the largest value of that answer.
bfloat16 has 8 bits of mantissa, and each rounding errs by up to 0.4 %; after the 60 layers of a trunk our own reaches
5 %."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The dense parts as functions.

    trunk: canvas [N, 3, H, W] -> the pyramid's levels, then the RPN's logits of each level, then its deltas, float32.
    box_head: pooled [R, F, 7, 7] -> [R, D]. mask_head: pooled [R, F, 14, 14], mask weights [R, F], bias -> logits
    [R, M, M] float32.
    """

    trunk: Callable[[Tensor], Sequence[Tensor]]
    box_head: Callable[[Tensor], Tensor]
    mask_head: Callable[[Tensor, Tensor, Tensor], Tensor]


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


def modules_of(network: Inference) -> dict[str, nn.Module]:
    """The parts by their names; they share their weights with the network."""
    return dict(zip(PARTS, (Trunk(network), network.box_head, network.mask_branch), strict=True))


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


def computed_by(network: Inference, dense: Dense) -> None:
    """From now on the network takes its dense parts' answers from `dense`, under labels of their own in a profile.

    The weights of the modules stay where they are; only what calls them is replaced.
    """
    waiting: list[tuple[list[Tensor], list[Tensor]]] = []
    names = ("0", "1", "2", "3", "pool")

    def backbone(canvas: Tensor) -> dict[str, Tensor]:
        with record_function("maskx::dense_trunk"):
            every = list(dense.trunk(canvas))
        waiting[:] = [(every[LEVELS : 2 * LEVELS], every[2 * LEVELS :])]
        return dict(zip(names, every, strict=False))

    def head(_: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return waiting.pop()

    def box_head(pooled: Tensor) -> Tensor:
        with record_function("maskx::dense_box_head"):
            return dense.box_head(pooled)

    def mask_head(pooled: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        with record_function("maskx::dense_mask_head"):
            return dense.mask_head(pooled, weights, bias)

    replaced: tuple[tuple[nn.Module, Callable[..., Any]], ...] = (
        (network.backbone, backbone),
        (network.rpn.head, head),
        (network.box_head, box_head),
        (network.mask_branch, mask_head),
    )
    for module, function in replaced:
        module.forward = function


class Recorded:
    """`dense` that keeps what each part was last given, for `differences`."""

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


@torch.no_grad()
def differences(given: dict[str, tuple[Tensor, ...]], ours: Dense, other: Dense) -> dict[str, float]:
    """Of each part, the largest difference between two engines' answers to the same tensors, in shares of the largest
    value of the answer; of the trunk, of the worst of its answers. Infinite where shapes differ or a number is none."""
    found = {}
    for name, tensors in given.items():
        expected, got = (answers_of(getattr(dense, name)(*tensors)) for dense in (ours, other))
        pairs = zip(expected, got, strict=True)
        found[name] = max(difference(a, b) for a, b in pairs)
    return found


def difference(expected: Tensor, got: Tensor) -> float:
    """See `differences`."""
    if expected.shape != got.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    largest = expected.float().abs().max()
    return float((expected.float() - got.float()).abs().max() / largest) if expected.numel() else 0.0


def answers_of(answer: Any) -> list[Tensor]:
    """One tensor or several, as a list."""
    return [answer] if isinstance(answer, Tensor) else list(answer)
