"""torchvision's Mask R-CNN under torch.compile, the strongest form that a user comes to without writing code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

from benchmarks.speed.peer import Peer

COMPILED = (
    "backbone",
    "rpn.head",
    "roi_heads.box_head",
    "roi_heads.box_predictor",
    "roi_heads.mask_head",
    "roi_heads.mask_predictor",
)
"""The modules that have weights. What lies between them depends on what is found, and stays eager: torch.compile of the
whole would break its graph there and compile the pieces anew for other numbers of boxes."""


class CompiledPeer(Peer):
    """`Peer` whose modules with weights are compiled, weights frozen into the code, in one precision.

    Compiles when it first runs, and again at another size.
    """

    def __init__(
        self, weights: str | Path, classes: int, device: str, precision: str = "float32", **sizes: Any
    ) -> None:
        from torch._inductor import config

        config.freezing = True
        super().__init__(weights, classes, device, **sizes)
        dtype: torch.dtype = getattr(torch, precision)
        for name in COMPILED:
            parent, _, own = name.rpartition(".")
            part = self.eager.get_submodule(name)
            setattr(self.eager.get_submodule(parent), own, Compiled(part, dtype))


class Compiled(nn.Module):
    """A module in `dtype` and compiled, float32 outside."""

    def __init__(self, part: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        inside: Callable[..., Any] = torch.compile(InType(part.to(dtype), dtype))
        self._run = inside
        if hasattr(part, "out_channels"):
            self.out_channels = part.out_channels

    def forward(self, *given: Any) -> Any:
        """The part's answer."""
        return self._run(*given)


class InType(nn.Module):
    """A module of `dtype` that takes and gives float32."""

    def __init__(self, part: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.part, self.dtype = part, dtype

    def forward(self, *given: Any) -> Any:
        """Tensors, or lists and dicts of them."""
        answer = self.part(*trees.tree_map(self._reduced, given))
        return trees.tree_map(Tensor.float, answer)

    def _reduced(self, one: Tensor) -> Tensor:
        return one.to(self.dtype)
