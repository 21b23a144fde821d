"""The model's categories, and which of them the parameter `categories` of a request means.

Knows nothing of the server; the standard library is all it needs.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskx_errors import RequestError, shown

LONGEST_TEXT = 200_000
"""Characters of the parameter as text; the 1203 names of LVIS take 15 thousand."""

_LONGEST_NAME = 200
"""Characters of a name for which similar names are looked for; the search is quadratic in them."""


@dataclass(frozen=True, kw_only=True)
class Category:
    """A class of the model: its id and name in the data set, whether it had masks in training (set A), and whether
    its objects have keypoints."""

    id: int
    name: str
    mask_supervised: bool
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

    def labels_of(self, value: Any, road: str) -> frozenset[int]:
        """The labels that `value` names, at least one.

        Args:
            value: a list of names and ids, one id, or text as str or UTF-8 bytes: names and ids with commas between, or
                a JSON list, for names that have commas. What has digits only is an id.
            road: by which it came, for the message ("the header").

        Raises:
            RequestError: an unknown name or id, with similar names; an empty list; a value of another type.
        """
        where = f"categories in {road}"
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
        found = [folded[one] for one in near]
        if name and not found:
            found = [known for known in self._by_name if known.startswith(name + ",")][:1]
        if found:
            comma = "; a name with a comma goes into a JSON list" if "," in "".join(found) else ""
            return "did you mean " + " or ".join(shown(one) for one in found) + "?" + comma
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
        raise RequestError(f"{where} is {shown(value)}, which begins like a JSON list and is none") from error
    assert isinstance(items, list)  # what begins with a bracket
    return items
