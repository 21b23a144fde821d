"""What a request may choose besides its image, by the same names wherever they stand; and the model's categories."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from maskx_errors import RequestError, shown

MAX_DETECTIONS = 1000
"""Most detections that one request may ask for."""

MASK_FORMATS = ("rle", "polygon", "png", "none")
OUTPUTS = ("json", "overlay")

LEAST_TILE = 128
LARGEST_TILE = 8192
"""Sides of a tile, in pixels of the upright image."""

LONGEST_TEXT = 200_000
"""Characters of the parameter `categories` as text; the 1203 names of LVIS take 15 thousand."""

_LONGEST_NAME = 200
"""Characters of a name for which similar names are looked for; the search is quadratic in them."""


@dataclass(frozen=True)
class Tiling:
    """Square tiles of `size` pixels, neighbours `overlap` pixels or more over each other."""

    size: int
    overlap: int


@dataclass(frozen=True, kw_only=True)
class Category:
    """A class of the model: its id and name in the data set, whether it had masks in training (set A), what its masks
    were learned from (None: the model does not say), and whether its objects have keypoints."""

    id: int
    name: str
    mask_supervised: bool
    mask_source: str | None = None
    keypoints: bool = False


class CategoryIndex:
    """Finds labels by the ids and names of their categories; several labels may share a name."""

    def __init__(self, categories: Mapping[int, Category]) -> None:
        """`categories`: label -> category."""
        self._by_id: dict[int, set[int]] = {}
        self._by_name: dict[str, set[int]] = {}
        for label, category in categories.items():
            self._by_id.setdefault(category.id, set()).add(label)
            self._by_name.setdefault(category.name, set()).add(label)

    def labels_of(self, value: Any, place: str) -> frozenset[int]:
        """The labels that `value` names, at least one.

        Args:
            value: a list of names and ids, one id, or text as str or UTF-8 bytes: names and ids with commas between, or
                a JSON list, for names that have commas. What has digits only is an id.
            place: where they stood, for the message ("the header").

        Raises:
            RequestError: an unknown name or id, with similar names; an empty list; a value of another type.
        """
        where = f"categories in {place}"
        labels: set[int] = set()
        items = _items(value, where)
        if not items:
            raise RequestError(f"{where} is empty; leave it out to have all")
        for item in items:
            labels |= self._labels_of_one(item, where)
        return frozenset(labels)

    def _labels_of_one(self, item: Any, where: str) -> set[int]:
        if isinstance(item, str) and re.fullmatch("-?[0-9]{1,18}", item):
            item = int(item)
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise RequestError(f"{where} has {shown(item)}; names and whole numbers (ids) are allowed")
        if isinstance(item, int):
            if item not in self._by_id:
                ids = sorted(self._by_id)
                raise RequestError(
                    f"{where} has the unknown id {shown(item)}; the model has {len(ids)} categories with ids from "
                    f"{ids[0]} to {ids[-1]}"
                )
            return self._by_id[item]
        if item not in self._by_name:
            raise RequestError(f"{where} has the unknown name {shown(item)}; {self._hint(item)}")
        return self._by_name[item]

    def _hint(self, name: str) -> str:
        folded = {known.casefold(): known for known in self._by_name}
        near = difflib.get_close_matches(name[:_LONGEST_NAME].casefold(), folded, n=3)
        similar = [folded[one] for one in near]
        if name and not similar:
            similar = [known for known in self._by_name if known.startswith(name + ",")][:1]
        if similar:
            comma = "; a name with a comma goes into a JSON list" if "," in "".join(similar) else ""
            return "did you mean " + " or ".join(shown(one) for one in similar) + "?" + comma
        first = ", ".join(shown(known) for known in list(self._by_name)[:5])
        return f"the model has {len(self._by_name)} names, such as {first}"


def _items(value: Any, where: str) -> list[Any]:
    """Names and ids, one by one, not looked up yet."""
    if isinstance(value, bytes | bytearray):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(f"{where} is {shown(value)}, which is not UTF-8") from error
    if isinstance(value, list):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, str):
        raise RequestError(
            f"{where} is {shown(value)}; allowed are a list of names and ids, or text with commas between them"
        )
    if len(value) > LONGEST_TEXT:
        raise RequestError(f"{where} has {len(value)} characters; at most {LONGEST_TEXT} are read")
    if value.lstrip()[:1] != "[":
        return [item.strip() for item in value.split(",")] if value.strip() else []
    try:
        items = json.loads(value)
    except (ValueError, RecursionError) as error:
        wrong = "which begins like a JSON list but is not one"
        raise RequestError(f"{where} is {shown(value)}, {wrong}") from error
    assert isinstance(items, list)  # what begins with a bracket
    return items


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What a request may choose.

    `score_threshold`: detections of this score or less are left out, 0..1. `max_detections`: at most so many, the
    best first, 1..MAX_DETECTIONS. `labels`: of the categories that are looked for, None for all. `mask_format`: one of
    MASK_FORMATS. `output`: one of OUTPUTS; "overlay" is a picture in place of the answer. `tiles`: the image is looked
    at in tiles (`maskx_tiles`), None: as a whole.
    """

    score_threshold: float
    max_detections: int
    labels: frozenset[int] | None = None
    mask_format: str = "rle"
    output: str = "json"
    tiles: Tiling | None = None


class GivenParameters:
    """Parameters as they came, each with the place where it stood ("the JSON")."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[Any, str]] = {}

    def add(self, name: str, value: Any, place: str) -> None:
        """Takes in one of PARAMETERS. Raises RequestError naming both places where it was given before."""
        if name in self._values:
            other = self._values[name][1]
            places = f"in {other} and in {place}" if other != place else f"in {place}"
            raise RequestError(f"{name} is given twice, {places}; give it once")
        self._values[name] = (value, place)

    def applied_to(self, base: Parameters, categories: CategoryIndex) -> Parameters:
        """`base` with these put in; values may be numbers, or text as str or UTF-8 bytes.

        Raises RequestError, naming the parameter, the value, the place and what is allowed.
        """
        for name, (value, place) in self._values.items():
            if name == "categories":
                base = replace(base, labels=categories.labels_of(value, place))
            else:
                base = replace(base, **{name: _READERS[name](name, value, place)})
        return base


def given_in_headers(headers: Mapping[str, Any]) -> GivenParameters:
    """The parameters among the headers: by any case, with `_` or `-`; all other headers are left alone.

    TorchServe puts the content types of the form's parts, as mappings, among them; they are left out.

    Raises RequestError where two headers mean the same parameter.
    """
    given = GivenParameters()
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


def _score_threshold(name: str, value: Any, place: str) -> float:
    number = _number(value)
    if number is None or not 0.0 <= number <= 1.0:
        raise RequestError(f"{name} is {shown(value)} in {place}; a number from 0 to 1 is allowed")
    return number


def _max_detections(name: str, value: Any, place: str) -> int:
    number = _number(value)
    if number is None or number != int(number) or not 1 <= number <= MAX_DETECTIONS:
        allowed = f"a whole number from 1 to {MAX_DETECTIONS} is allowed"
        raise RequestError(f"{name} is {shown(value)} in {place}; {allowed}")
    return int(number)


def _one_of(choices: tuple[str, ...]) -> Callable[[str, Any, str], str]:
    def read(name: str, value: Any, place: str) -> str:
        text = _text(value)
        if text not in choices:
            raise RequestError(f"{name} is {shown(value)} in {place}; allowed are {', '.join(choices)}")
        return str(text)

    return read


_NUMBER = re.compile(r"[+-]?([0-9]{1,50}\.?[0-9]{0,50}|\.[0-9]{1,50})([eE][+-]?[0-9]{1,3})?")
"""What is a number wherever it stands: Python's own reader would take 1_0, nan and the digits of any script."""


def _number(value: Any) -> float | None:
    """A finite number out of a number or a text; None for anything else."""
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


def _tiling(name: str, value: Any, place: str) -> Tiling:
    text = _text(value)
    parts = text.split(",") if isinstance(text, str) else text if isinstance(text, list) else [text]
    numbers = [_number(part) for part in parts[:3]]
    size = numbers[0] if numbers else None
    overlap = numbers[1] if len(numbers) > 1 else None if size is None else size // 8
    if (
        len(numbers) not in (1, 2)
        or size is None
        or overlap is None
        or size % 1
        or overlap % 1
        or not LEAST_TILE <= size <= LARGEST_TILE
        or not 0 < overlap <= size / 2
    ):
        raise RequestError(
            f"{name} is {shown(value)} in {place}; allowed is a side of {LEAST_TILE} to {LARGEST_TILE} pixels, "
            'alone or with an overlap of 1 pixel to half of it: "1024" or "1024,128"'
        )
    return Tiling(int(size), int(overlap))


@dataclass(frozen=True, kw_only=True)
class ParameterForm:
    """One parameter as callers know it.

    `meaning`: in a sentence. `schema`: what it may be in a JSON body, in the words of JSON Schema, without the default,
    which is the model's. `read`: its value out of what came, from (name, value, place); None for `categories`, which
    the model's own index looks up.
    """

    name: str
    meaning: str
    schema: Mapping[str, Any]
    read: Callable[[str, Any, str], Any] | None = None


FORMS = (
    ParameterForm(
        name="score_threshold",
        meaning="Detections of this score or less are left out.",
        schema={"type": "number", "minimum": 0, "maximum": 1},
        read=_score_threshold,
    ),
    ParameterForm(
        name="max_detections",
        meaning="At most so many detections, the best first.",
        schema={"type": "integer", "minimum": 1, "maximum": MAX_DETECTIONS},
        read=_max_detections,
    ),
    ParameterForm(
        name="categories",
        meaning="Names and ids of the categories looked for; left out: all. In a text, commas stand between them.",
        schema={
            "oneOf": [
                {"type": "array", "minItems": 1, "items": {"type": ["string", "integer"]}},
                {"type": "string", "maxLength": LONGEST_TEXT},
                {"type": "integer"},
            ]
        },
    ),
    ParameterForm(
        name="mask_format",
        meaning="The form of the masks: COCO's run lengths, polygons, pictures of 1 bit, or none.",
        schema={"type": "string", "enum": list(MASK_FORMATS)},
        read=_one_of(MASK_FORMATS),
    ),
    ParameterForm(
        name="output",
        meaning="JSON, or the image with its detections drawn in, as PNG; that for a single image alone.",
        schema={"type": "string", "enum": list(OUTPUTS)},
        read=_one_of(OUTPUTS),
    ),
    ParameterForm(
        name="tiles",
        meaning="Side and overlap of the tiles in which a large image is looked at, in pixels; left out: as a whole.",
        schema={
            "oneOf": [
                {"type": "integer", "minimum": LEAST_TILE, "maximum": LARGEST_TILE},
                {"type": "string", "pattern": "^ *[0-9]+ *(, *[0-9]+ *)?$"},
                {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "integer", "minimum": 1}},
            ]
        },
        read=_tiling,
    ),
)
"""Every parameter, in the order in which they are told of: what is read, what is allowed and what is published come
from here."""

PARAMETERS = tuple(form.name for form in FORMS)

_READERS = {form.name: form.read for form in FORMS if form.read is not None}
