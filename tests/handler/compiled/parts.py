"""What the tests of compiled packages share: modules in the place of libraries, packages without any."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskx_answer import Detections
from maskx_compiled import package_for
from maskx_parameters import Parameters
from tests.served.compiled_standin import (
    BoxHead,
    MaskHead,
    Trunk,
    record_of,
    write_package,
)
from tests.served.standin import (
    scene,
)

CPU = torch.device("cpu")
PARTS = ("box_head", "mask_head", "trunk")
ALL = Parameters(score_threshold=0.5, max_detections=10)
NO_MASKS = Parameters(score_threshold=0.5, max_detections=10, mask_format="none")
IMAGES = [
    scene(red=(1, 1, 5, 5), green=(10, 10, 5, 5)),
    scene(width=50, blue=(20, 10, 6, 6)),
    scene(),
    scene(width=130, height=33, red=(3, 3, 9, 9)),
]


class Eager:
    """A module in a library's place; `factor` makes its answers wrong."""

    def __init__(self, module: nn.Module, factor: float = 1.0) -> None:
        self.module, self.factor = module, factor
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        self.shapes.append(tuple(inputs[0].shape))
        answers = self.module(*inputs)
        if isinstance(answers, Tensor):
            answers = ([answers],)
        return [one * self.factor for some in answers for one in some]


def eager(parts: Sequence[str] = PARTS, **factors: float) -> dict[str, Eager]:
    modules = {"trunk": Trunk(), "box_head": BoxHead(), "mask_head": MaskHead()}
    return {part: Eager(modules[part], factors.get(part, 1.0)) for part in parts}


def put_package(path: Path, **changes: Any) -> Path:
    """A package for the maskx.pt, without libraries, its record changed."""
    return write_package(path.with_suffix(".pt2"), record_of(path, **changes), {})


def why_not(path: Path, *, wanted: str = "auto", device: torch.device = CPU) -> str:
    found = package_for(path.parent, torchscript=path, device=device, precision="float32", wanted=wanted)
    assert isinstance(found, str), found
    return found


def same(found: Sequence[Detections], expected: Sequence[Detections]) -> bool:
    names = ("boxes", "scores", "labels", "rle_counts", "rle_offsets")
    return len(found) == len(expected) and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for one, other in zip(found, expected, strict=True)
        for name in names
    )
