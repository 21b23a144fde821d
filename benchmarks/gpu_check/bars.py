"""The bars that the check judges by, each met, missed or not measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tables import table

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"
NOT_200 = "not 200"


@dataclass(frozen=True)
class Bar:
    """A figure's name in the parts' numbers, what it is, and the least or the most that it may be (exactly one).

    gpu_only: a figure of a CPU says nothing about it. aim: what is hoped for beyond the bar.
    """

    key: str
    what: str
    at_least: float | None = None
    at_most: float | None = None
    gpu_only: bool = True
    aim: str = ""
    digits: int = 1

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.key}: give either at_least or at_most")

    def judge(self, value: float | None, *, on_gpu: bool) -> str:
        """MET, MISSED or NOT_MEASURED; a value that is not a number is missed."""
        if value is None or (self.gpu_only and not on_gpu):
            return NOT_MEASURED
        if self.at_least is not None:
            return MET if value >= self.at_least else MISSED
        assert self.at_most is not None
        return MET if value <= self.at_most else MISSED

    def shown(self, value: float | None, *, on_gpu: bool) -> str:
        """The figure; of a CPU in brackets where it is one of a GPU that is wanted."""
        if value is None:
            return "-"
        text = f"{value:.{self.digits}f}"
        return f"({text} on the CPU)" if self.gpu_only and not on_gpu else text

    @property
    def wanted(self) -> str:
        """As a reader writes it."""
        bound = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return f"{bound} ({self.aim})" if self.aim else bound


BARS = (
    Bar(NOT_200, "requests not answered 200, all parts together", at_most=0, gpu_only=False, digits=0),
    Bar(
        "unseen sizes", "50 sizes never seen: the slowest / the median, worst precision", at_most=3, digits=2
    ),
    Bar(
        "unseen sizes large", "the same of ResNet-50 at 800 in the precision of serving", at_most=3, digits=2
    ),
    Bar("engine", "engine, 1080p, batch 8, bfloat16, decoding overlapped: images/s", at_least=400),
    Bar("engine idle", "the same: share of the time in which no kernel ran, %", at_most=15),
    Bar(
        "served",
        "TorchServe, ResNet-50 at 800, COCO-sized JPEGs, REST: requests/s",
        at_least=255,
        aim="aim 400",
    ),
    Bar("served p50", "the same, one client: p50, ms", at_most=15),
    Bar("served p99", "the same, one client: p99 / p50", at_most=2, digits=2),
    Bar(
        "compiled",
        "the compiled package, 1080p, batch 8, bfloat16: images/s / those of TorchScript",
        at_least=1,
        aim="aim 1.5",
        digits=2,
    ),
    Bar(
        "training photos",
        "training, EfficientNet-Lite0 at 384 to 640, bfloat16: images/s with the reading of the files",
        at_least=400,
    ),
    Bar(
        "training resnet50",
        "training, ResNet-50-FPN at 800: images/s / those of torchvision's step, both in bfloat16",
        at_least=1.5,
        digits=2,
    ),
    Bar(
        "AP bfloat16", "AP of boxes and masks, bfloat16 - float32: the larger, points", at_most=0.2, digits=2
    ),
    Bar("AP float16", "AP of boxes and masks, float16 - float32: the larger, points", at_most=0.2, digits=2),
)


def values_of(numbers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The figures of all parts by their bar's key; requests without a 200 are added up where any were counted."""
    found: dict[str, float] = {}
    for one in numbers:
        found |= one.get("bars", {})
        if "requests" in one:
            found[NOT_200] = found.get(NOT_200, 0.0) + one["requests"][NOT_200]
    return found


def verdicts(numbers: Sequence[Mapping[str, Any]], *, on_gpu: bool) -> dict[str, str]:
    """Of every bar, by its key."""
    values = values_of(numbers)
    return {bar.key: bar.judge(values.get(bar.key), on_gpu=on_gpu) for bar in BARS}


def bars_table(numbers: Sequence[Mapping[str, Any]], *, on_gpu: bool) -> str:
    """What was wanted, what was measured, and which it is."""
    values, judged = values_of(numbers), verdicts(numbers, on_gpu=on_gpu)
    rows = []
    for bar in BARS:
        verdict = judged[bar.key]
        told = bar.shown(values.get(bar.key), on_gpu=on_gpu)
        rows.append((bar.what, bar.wanted, told, f"**{verdict}**" if verdict == MISSED else verdict))
    return table(("bar", "wanted", "measured", "verdict"), rows)
