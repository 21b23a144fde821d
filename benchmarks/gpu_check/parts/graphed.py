"""What a CUDA graph of the trunk would gain for one image: backbone and RPN head, launched singly and replayed."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.clock import timed
from maskx_engine import fusers_off

Trunk = Callable[[], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Graphed:
    """Seconds of the trunk of one image (medians); `replayed` and `same` are None where there are no CUDA graphs."""

    launched: float
    replayed: float | None = None
    same: bool | None = None
    """Whether the graph's answers are those of the launched trunk, bit for bit."""


def trunk_of(path: Path, device: torch.device, dtype: torch.dtype, height: int, width: int) -> Trunk:
    """The trunk of a maskx.pt on one canvas of this size: levels, objectness and deltas in one list."""
    fusers_off()
    network = torch.jit.load(path, map_location=device).eval()
    network.backbone.to(dtype)
    network.rpn.head.to(dtype)
    canvas = torch.rand(1, 3, height, width, device=device).to(dtype)
    canvas = canvas.contiguous(memory_format=torch.channels_last)

    def run() -> list[Tensor]:
        levels = list(network.backbone(canvas).values())
        logits, deltas = network.rpn.head(levels)
        return [*levels, *logits, *deltas]

    return run


def measure_trunk(trunk: Trunk, device: torch.device, runs: int) -> Graphed:
    """Times it launched and, on a GPU, replayed."""
    if device.type != "cuda":
        return Graphed(launched=statistics.median(timed(trunk, runs)))
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # a graph may be captured only after the first runs, on another stream
        for _ in range(3):
            trunk()
    torch.cuda.current_stream(device).wait_stream(side)
    expected = [one.clone() for one in trunk()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answers = trunk()
    graph.replay()
    same = all(torch.equal(a, b) for a, b in zip(expected, answers, strict=True))
    launched, replayed = (statistics.median(timed(work, runs, device)) for work in (trunk, graph.replay))
    return Graphed(launched=launched, replayed=replayed, same=same)
