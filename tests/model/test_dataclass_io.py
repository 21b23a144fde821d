"""Nested dataclasses from plain values: what is taken, and what each mistake is answered with."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from model.dataclass_io import from_plain, to_plain


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 1.0
    sizes: tuple[int, ...] = (1,)
    span: tuple[float, float] = (0.0, 1.0)
    kind: Literal["round", "square"] = "round"
    name: str | None = None
    on: bool = False

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate is {self.rate}; give 0 or more")


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int
    inner: Inner = field(default_factory=Inner)


def test_what_was_made_plain_comes_back_equal() -> None:
    whole = Outer(count=3, inner=Inner(rate=0.5, sizes=(4, 5), kind="square", name="x", on=True))
    plain = to_plain(whole)
    inner = {"rate": 0.5, "sizes": [4, 5], "span": [0.0, 1.0], "kind": "square", "name": "x", "on": True}
    assert plain == {"count": 3, "inner": inner}
    assert from_plain(Outer, plain) == whole


def test_absent_keys_take_their_defaults_and_an_integer_serves_as_a_number() -> None:
    made = from_plain(Outer, {"count": 1, "inner": {"rate": 2}})
    assert made == Outer(count=1, inner=Inner(rate=2.0)) and isinstance(made.inner.rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1, "iner": {}}, "unknown key iner: did you mean inner?"),
        ({"count": 1, "inner": {"raet": 1}}, "unknown key inner.raet: did you mean inner.rate?"),
        ({"count": 1, "zzz": 1}, "unknown key zzz: known here are count, inner"),
        ({}, "count is missing: expected an integer"),
        ({"count": 1.0}, "count: expected an integer, got 1.0 (float)"),
        ({"count": True}, "count: expected an integer, got True (bool)"),
        ({"count": "1"}, "count: expected an integer, got '1' (str)"),
        ({"count": 1, "inner": 5}, "inner: expected a table of keys, got 5 (int)"),
        ({"count": 1, "inner": {"rate": "fast"}}, "inner.rate: expected a number, got 'fast' (str)"),
        ({"count": 1, "inner": {"rate": float("nan")}}, "inner.rate: expected a finite number, got nan"),
        ({"count": 1, "inner": {"on": 1}}, "inner.on: expected true or false, got 1 (int)"),
        ({"count": 1, "inner": {"sizes": [1, "b"]}}, "inner.sizes[1]: expected an integer, got 'b' (str)"),
        (
            {"count": 1, "inner": {"sizes": "12"}},
            "inner.sizes: expected a list, each an integer, got '12' (str)",
        ),
        (
            {"count": 1, "inner": {"span": [1]}},
            "inner.span: expected a list of 2 (a number, a number), got [1] (list)",
        ),
        (
            {"count": 1, "inner": {"kind": "squar"}},
            "inner.kind: expected one of 'round', 'square', got 'squar' (str); did you mean 'square'?",
        ),
        ({"count": 1, "inner": {"name": 7}}, "inner.name: expected a string, got 7 (int)"),
        ({"count": 1, "inner": {"rate": -1}}, "[inner] rate is -1.0; give 0 or more"),
    ],
)
def test_every_mistake_is_named_with_its_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        from_plain(Outer, values)


def test_a_value_that_no_file_can_hold_is_no_configuration() -> None:
    with pytest.raises(TypeError, match="plain values, not complex"):
        to_plain({"a": 1j})
