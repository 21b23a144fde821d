"""What is wrong with a data set: trouble that stops the loading is listed, other trouble is counted by kind."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["left out", "kept without its mask", "kept without its keypoints", "kept", "passed over"]

CROWDS = "iscrowd 1, as most annotations have"
FROM_0_TO_1 = "box of coordinates from 0 to 1, as most have"
TWO_CORNERS = "box that reads as two corners, as all do"
OF_THE_WHOLE_SET = (CROWDS, FROM_0_TO_1, TWO_CORNERS)
"""Kinds of findings that say how a whole set is wrong, not one annotation."""

FARTHEST = 1e9
"""Pixels; what lies there is no place in a picture."""

_SHOWN = 5
_LONGEST = 600


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of trouble that did not stop the loading: what became of it, how often, the first in words."""

    kind: str
    outcome: Outcome
    count: int
    first: str

    def __str__(self) -> str:
        first = self.first.encode("utf-8", "backslashreplace").decode()  # of file names that are no text
        return f"{self.count} x {self.kind} ({self.outcome}); first: {first}"


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
    annotations: int = 0
    """In the file: objects, crowd regions, and those left out, each once."""
    sources: tuple[str, ...] = ()
    """Of a training set, lines on what the masks of its classes are learned from."""

    @property
    def left_out(self) -> int:
        """Annotations of which nothing is used."""
        return sum(one.count for one in self.findings if one.outcome == "left out")

    def __str__(self) -> str:
        count = self.objects_with_keypoints
        keypoints = "" if count is None else f", {count} with keypoints"
        lines = [
            f"{self.source}: {self.images} images ({self.images_without_objects} without objects), {self.objects} "
            f"objects ({self.objects_with_mask} with a mask{keypoints}), {self.crowd_regions} crowd regions"
        ]
        lines += [f"  {line}" for line in (*self.sources, *map(str, self.findings))]
        return "\n".join(lines)


class Tally:
    """Counts trouble by kind and keeps the words of the first."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Outcome], tuple[int, str]] = {}

    def copy(self) -> "Tally":
        """Another with the same counts."""
        other = Tally()
        other._seen = dict(self._seen)
        return other

    def add(self, kind: str, outcome: Outcome, words: str, times: int = 1) -> None:
        count, first = self._seen.get((kind, outcome)) or (0, in_one_line(words))
        self._seen[kind, outcome] = (count + times, first)

    def findings(self) -> tuple[Finding, ...]:
        return tuple(
            Finding(kind=kind, outcome=outcome, count=count, first=first)
            for (kind, outcome), (count, first) in self._seen.items()
        )


class Overall:
    """What single annotations do not show: a set of crowds, of coordinates from 0 to 1, of boxes by two corners."""

    def __init__(self) -> None:
        self._all = 0
        self._crowds = Tally()
        self._small = Tally()
        self._corners = True
        """Whether no box could not be x0, y0, x1, y1."""
        self._beyond = Tally()

    def add(self, entry: Mapping[str, Any], bbox: Sequence[float], size: tuple[int, int], where: str) -> None:
        """Count in an annotation that can be used, of this box in numbers, in an image of (height, width)."""
        self._all += 1
        if entry.get("iscrowd"):
            words = (
                f"{where}: a crowd region, from which nothing is learnt; expected iscrowd 0 of objects. If they are "
                "objects (CVAT writes 1 for masks), set data.crowd_as_objects=true"
            )
            self._crowds.add(CROWDS, "kept", words)
        if max(bbox) <= 1:
            words = f"{where}: bbox {bbox}; expected pixels: multiply by the image's width and height"
            self._small.add(FROM_0_TO_1, "kept", words)
        x, y, w, h = bbox
        self._corners = self._corners and x < w <= size[1] + 1 and y < h <= size[0] + 1
        if self._corners and (x + w > size[1] + 1 or y + h > size[0] + 1):
            words = f"{where}: bbox {bbox} in {size[1]} x {size[0]}; expected [x, y, width, height]"
            self._beyond.add(TWO_CORNERS, "kept", words)

    def tell(self, tally: Tally) -> None:
        """Add to `tally` what more than half of the annotations are."""
        for seen in (self._crowds, self._small):
            for one in seen.findings():
                if 2 * one.count > self._all:
                    tally.add(one.kind, one.outcome, one.first, one.count)
        for one in self._beyond.findings():
            if self._corners and 5 * one.count >= self._all:
                tally.add(one.kind, one.outcome, one.first, self._all)


def is_id(value: Any) -> bool:
    """Whether `value` is a whole number that fits int64; JSON's true and 1.0 are not."""
    return type(value) is int and -(2**63) <= value < 2**63


def are_numbers(values: Sequence[Any], farthest: float = FARTHEST) -> bool:
    """Whether all are numbers below `farthest`, so no NaN, no Infinity and nothing that is no place in a picture."""
    return all(type(v) in (int, float) and abs(v) < farthest for v in values)


def broken_json(error: ValueError) -> str:
    """What `json.loads` could not read, and where."""
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
    if isinstance(error, UnicodeDecodeError):
        return f"not valid JSON: byte {error.start} is not UTF-8"
    return f"holds a number of more than {sys.get_int_max_str_digits()} digits; expected ids and pixels"


def refuse(source: str, problems: Sequence[str]) -> None:
    """ValueError that lists the first of `problems`; nothing where there are none."""
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{source}:\n  " + "\n  ".join(map(in_one_line, problems[:_SHOWN])) + more)


def in_one_line(words: str) -> str:
    """What can be shown of words from a file: a line break or another sign that does not print as its escape, and of a
    megabyte its beginning and its end."""
    if len(words) > _LONGEST:
        words = f"{words[: _LONGEST // 2]} ... {words[-_LONGEST // 2 :]}"
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
