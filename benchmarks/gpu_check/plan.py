"""Which parts there are, in which order, and how the minutes are dealt out to them."""

from collections.abc import Sequence
from dataclasses import dataclass

MINUTES = 8.0
"""That the parts' seconds are meant for."""
CPU_MINUTES = 20.0
"""For the short form on a CPU, whose work is the same however long it may take: some 5 are needed on 2 cores."""
OVERRUN = 1.25
"""A part is told its seconds and ended at so many times as many."""
SLACK = 5.0
"""Seconds beyond, for a process to start and to end."""


@dataclass(frozen=True)
class Planned:
    """A part: `benchmarks.gpu_check.parts.<name>`, the seconds it should take of `MINUTES`, the least it needs.

    needs: names of the preparations without which it can do nothing. apart: whether it runs only where it is named.
    """

    name: str
    title: str
    seconds: float
    least: float
    needs: tuple[str, ...] = ()
    apart: bool = False


PREPARATIONS = (
    Planned("trained", "The trained network", seconds=85, least=5),
    Planned("large", "The network of the bench", seconds=85, least=5),
)
"""Side by side, before everything else: one keeps the device busy, the other the processor."""

_MIXED = "Trained network: answers in every precision, nothing found, sizes, mixed batches"
PARTS = (
    Planned("answers", _MIXED, seconds=60, least=15, needs=("trained",)),
    Planned("engine", "Engine, 1080p JPEGs", seconds=50, least=15, needs=("large",)),
    Planned("served", "TorchServe, REST and gRPC", seconds=100, least=40, needs=("trained", "large")),
    Planned("training_speed", "Training: images/s beside torchvision", seconds=70, least=20),
    Planned(
        "training_same", "Training: GPU beside CPU, stop and resume", seconds=45, least=25, needs=("trained",)
    ),
    Planned("precisions", "AP in every precision", seconds=25, least=10, needs=("trained",)),
    Planned("exhaustion", "Memory exhausted", seconds=20, least=12, needs=("large",)),
    Planned("waits", "Where the host waits, and a trace", seconds=35, least=15, needs=("trained", "large")),
    Planned(
        "compiled",
        "The compiled package beside TorchScript",
        seconds=150,
        least=60,
        needs=("large",),
        apart=True,
    ),
)
"""The most important first; what the minutes do not suffice for is left out from the end."""


@dataclass(frozen=True, kw_only=True)
class Grant:
    """seconds: that a part is told it has. limit: after which it is ended."""

    seconds: float
    limit: float


def grant(part: Planned, *, minutes: float, left: float) -> Grant | None:
    """What a part may take where `left` seconds remain of `minutes`; None where that is less than it needs.

    Seconds that earlier parts did not need stay with those at the end. No grants together exceed the minutes, since
    `left` bounds each limit.
    """
    wished = max(part.seconds * minutes / MINUTES, part.least)
    seconds = min(wished, left - SLACK)
    if seconds < part.least:
        return None
    return Grant(seconds=seconds, limit=min(seconds * OVERRUN + SLACK, left))


def worth(minutes: float, chosen: Sequence[Planned], parts: Sequence[Planned]) -> float:
    """What `minutes` are worth to each of the chosen parts: more, up to twice as many, where others are left out."""
    whole, some = (sum(part.seconds for part in of) for of in (parts, chosen))
    return minutes * min(whole / some, 2.0) if some else minutes
