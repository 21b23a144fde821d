"""Measured times, their ratios, and Markdown tables of them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Times:
    """Seconds of repeated runs of one thing; at least one."""

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds:
            raise ValueError("no run was timed; at least one is needed")

    @property
    def median(self) -> float:
        """Of all runs."""
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        """The fastest run."""
        return min(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"median": self.median, "min": self.least, "runs": list(self.seconds)}


def times_of(times: Mapping[Any, Times]) -> dict[str, Any]:
    """Plain values of each."""
    return {str(name): of.to_dict() for name, of in times.items()}


@dataclass(frozen=True)
class Part:
    """One section of the result: Markdown, the numbers behind it, and the ratios that bars are set for."""

    title: str
    text: str
    numbers: dict[str, Any]
    ratios: dict[str, float] = field(default_factory=dict)


def speed_up(slower: Times, faster: Times) -> float:
    """How many times as long the first took, by medians."""
    return slower.median / faster.median


def shown(seconds: float) -> str:
    """Seconds for a reader: three digits that count."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 0.01:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds * 1000:.2f} ms"


def shown_times(times: Times) -> str:
    """Median, and the fastest run in brackets."""
    return f"{shown(times.median)} ({shown(times.least)})"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, all others are aligned right."""
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a row of {len(row)} cells under {len(headers)} headers: {list(row)}")
    marks = [":--", *["--:"] * (len(headers) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headers, marks, *rows)) + "\n"


def document(title: str, head: Sequence[tuple[str, str]], parts: Sequence[Part]) -> str:
    """The whole result in Markdown: what it was measured on, the ratios, then every part."""
    lines = [f"# {title}", "", *[f"- {name}: {value}" for name, value in head], ""]
    ratios = [(name, value) for part in parts for name, value in part.ratios.items()]
    if ratios:
        rows = [(name, f"{value:.2f}") for name, value in ratios]
        lines += ["## Ratios", "", table(("ratio", "value"), rows)]
    for part in parts:
        lines += [f"## {part.title}", "", part.text.rstrip(), ""]
    return "\n".join(lines)


def measured_on(machine: Mapping[str, Any], minutes: float | None = None) -> list[tuple[str, str]]:
    """The first lines of a table's head: when, how long, on which machine and with which versions."""
    flags = ", ".join(machine["flags"]) or "no flags known"
    cores = f"{machine['cores']} cores ({flags})"
    versions = f"torch {machine['torch']}, torchvision {machine['torchvision']}, Python {machine['python']}"
    lines = []
    if minutes is not None:
        date = f"{machine['date']}, {minutes:.0f} minutes, load before {machine['load_before']}"
        lines.append(("date", date))
    lines += [
        ("machine", f"{machine['processor']}, {cores}, {machine['memory_gib']} GiB, {machine['system']}"),
        ("versions", f"{versions}, {machine['threads']} threads"),
    ]
    if "gpu" in machine:
        lines.append(("GPU", f"{machine['gpu']}, {machine['gpu_memory_gib']} GiB, CUDA {machine['cuda']}"))
    return lines


def percent(value: float | None) -> str:
    """A share in percent; "-" where there is none."""
    return "-" if value is None else f"{100 * value:.2f}"
