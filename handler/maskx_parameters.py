"""What a request may choose besides its image: the parameters, by the same names on every road (border 5).

Knows nothing of the server; the standard library is all it needs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from maskx_categories import CategoryIndex
from maskx_errors import RequestError, shown

MAX_DETECTIONS = 1000
"""Most detections that one request may ask for."""

MASK_FORMATS = ("rle", "polygon", "png", "none")
OUTPUTS = ("json", "overlay")

PARAMETERS = ("score_threshold", "max_detections", "categories", "mask_format", "output")


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a request may choose.

    `score_threshold`: detections of this score or less are left out, 0..1. `max_detections`: at most so many, the
    best first, 1..MAX_DETECTIONS. `labels`: of the categories that are looked for, None for all. `mask_format`: one of
    MASK_FORMATS. `output`: one of OUTPUTS; "overlay" is a picture in place of the answer.
    """

    score_threshold: float
    max_detections: int
    labels: frozenset[int] | None = None
    mask_format: str = "rle"
    output: str = "json"


class Given:
    """Parameters as they came, each with the road it came by."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[Any, str]] = {}

    def add(self, name: str, value: Any, road: str) -> None:
        """Takes in one of PARAMETERS. Raises RequestError naming both roads where it came before."""
        if name in self._values:
            other = self._values[name][1]
            roads = f"in {other} and in {road}" if other != road else f"in {road}"
            raise RequestError(f"{name} is given twice, {roads}; give it once")
        self._values[name] = (value, road)

    def wishes(self, base: Wishes, categories: CategoryIndex) -> Wishes:
        """`base` with these put in; values may be numbers, or text as str or UTF-8 bytes.

        Raises RequestError, naming the parameter, the value, the road and what is allowed.
        """
        for name, (value, road) in self._values.items():
            if name == "categories":
                base = replace(base, labels=categories.labels_of(value, road))
            else:
                base = replace(base, **{name: _READERS[name](name, value, road)})
        return base


def given_in_headers(headers: Mapping[str, Any]) -> Given:
    """The parameters among the headers: by any case, with `_` or `-`; all others are no business of ours.

    TorchServe puts the content types of the form's parts, as mappings, among them; they are left out.

    Raises RequestError where two headers mean the same parameter.
    """
    given = Given()
    for header, value in headers.items():
        name = str(header).lower().replace("-", "_")
        if name in PARAMETERS and isinstance(value, str):
            given.add(name, _utf8(value), f"the header {shown(header)}")
    return given


def _utf8(value: str) -> str:
    """A header's text: TorchServe reads its bytes as Latin-1, clients write UTF-8."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def unknown(name: str, what: str, known: Iterable[str]) -> RequestError:
    """The error for a name that means nothing; `what` says which kind of name it is."""
    known = list(known)
    near = difflib.get_close_matches(name[:100].lower().replace("-", "_"), known, n=1, cutoff=0.65)
    hint = f"did you mean {near[0]}? Known are " if near else "known are "
    return RequestError(f"unknown {what} {shown(name)}; {hint}{', '.join(known)}")


def _score_threshold(name: str, value: Any, road: str) -> float:
    number = _number(value)
    if number is None or not 0.0 <= number <= 1.0:
        raise RequestError(f"{name} is {shown(value)} in {road}; a number from 0 to 1 is allowed")
    return number


def _max_detections(name: str, value: Any, road: str) -> int:
    number = _number(value)
    if number is None or number != int(number) or not 1 <= number <= MAX_DETECTIONS:
        raise RequestError(
            f"{name} is {shown(value)} in {road}; a whole number from 1 to {MAX_DETECTIONS} is allowed"
        )
    return int(number)


def _one_of(choices: tuple[str, ...]) -> Callable[[str, Any, str], str]:
    def read(name: str, value: Any, road: str) -> str:
        text = _text(value)
        if text not in choices:
            raise RequestError(f"{name} is {shown(value)} in {road}; allowed are {', '.join(choices)}")
        return str(text)

    return read


_READERS: dict[str, Callable[[str, Any, str], Any]] = {
    "score_threshold": _score_threshold,
    "max_detections": _max_detections,
    "mask_format": _one_of(MASK_FORMATS),
    "output": _one_of(OUTPUTS),
}

_NUMBER = re.compile(r"[+-]?([0-9]{1,50}\.?[0-9]{0,50}|\.[0-9]{1,50})([eE][+-]?[0-9]{1,3})?")
"""What is a number on every road: Python's own reader would take 1_0, nan and the digits of any script."""


def _number(value: Any) -> float | None:
    """A finite number out of a number or a text; None where it is none."""
    text = _text(value)
    if isinstance(text, str):
        text = float(text) if _NUMBER.fullmatch(text) else None
    if isinstance(text, bool) or not isinstance(text, int | float):
        return None
    try:
        number = float(text)
    except OverflowError:
        return None
    return number if abs(number) < float("inf") else None


def _text(value: Any) -> Any:
    """UTF-8 bytes and text as text without spaces around it; anything else as it is."""
    if isinstance(value, bytes | bytearray):
        value = value.decode("utf-8", errors="replace")
    return value.strip() if isinstance(value, str) else value
