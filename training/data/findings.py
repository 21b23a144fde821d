"""What is wrong with a data set: trouble that stops the loading is listed, other trouble is counted by kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["left out", "kept without its mask", "kept without its keypoints", "kept"]

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of trouble that did not stop the loading: what became of it, how often, the first in words."""

    kind: str
    outcome: Outcome
    count: int
    first: str

    def __str__(self) -> str:
        return f"{self.count} x {self.kind} ({self.outcome}); first: {self.first}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a data set holds, and what of it could not be used."""

    source: str
    images: int
    images_without_objects: int
    objects: int
    objects_with_mask: int
    crowd_regions: int
    findings: tuple[Finding, ...]
    objects_with_keypoints: int | None = None
    """None where the network has no keypoints."""

    def __str__(self) -> str:
        count = self.objects_with_keypoints
        keypoints = "" if count is None else f", {count} with keypoints"
        lines = [
            f"{self.source}: {self.images} images ({self.images_without_objects} without objects), {self.objects} "
            f"objects ({self.objects_with_mask} with a mask{keypoints}), {self.crowd_regions} crowd regions"
        ]
        lines += [f"  {finding}" for finding in self.findings]
        return "\n".join(lines)


class Tally:
    """Counts trouble by kind and keeps the words of the first."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Outcome], tuple[int, str]] = {}

    def add(self, kind: str, outcome: Outcome, words: str) -> None:
        count, first = self._seen.get((kind, outcome), (0, words))
        self._seen[kind, outcome] = (count + 1, first)

    def findings(self) -> tuple[Finding, ...]:
        return tuple(
            Finding(kind=kind, outcome=outcome, count=count, first=first)
            for (kind, outcome), (count, first) in self._seen.items()
        )


def are_numbers(values: Sequence[Any], farthest: float = 1e9) -> bool:
    """Whether all are numbers below `farthest`, so no NaN, no Infinity and nothing that is no place in a picture."""
    return all(type(v) in (int, float) and abs(v) < farthest for v in values)


def refuse(source: str, problems: Sequence[str]) -> None:
    """ValueError that lists the first of `problems`; nothing where there are none."""
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{source}:\n  " + "\n  ".join(problems[:_SHOWN]) + more)
