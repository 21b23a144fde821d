"""Nested frozen dataclasses to plain dictionaries and back, with every mistake named.

A configuration is a tree of frozen dataclasses. Outside Python it is a tree of plain values: a TOML file, a
checkpoint. ``to_plain`` and ``from_plain`` are the two directions; the second is strict, because a misspelt
key that is silently ignored is an experiment silently not made.
"""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from model.files import did_you_mean

T = TypeVar("T")
_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def require_at_least(least: int, **values: float | None) -> None:
    """ValueError that names the first value below `least`; None is no value."""
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; give {least} or more")


def require_shares(**values: float) -> None:
    """ValueError that names the first value that is not between 0 and 1, both included."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it is a share, between 0 and 1")


def to_plain(value: Any) -> Any:
    """Dataclasses become dictionaries and tuples become lists; scalars and ``None`` stay.

    What comes out holds only dict, list, str, int, float, bool and None, so that it can be written to TOML
    (but for None), JSON, and to a checkpoint that is read with ``weights_only=True``.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a configuration holds plain values, not {type(value).__name__}")


def from_plain(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """The dataclass ``cls`` from plain values; a key that is absent takes the field's default.

    ``where`` is the dotted path of ``mapping`` in the whole configuration, for the messages. An integer is
    taken where a number is asked for; nothing else is converted.

    Raises:
        ValueError: an unknown key (with the nearest known one), a missing one, a value of another type or
            not among the allowed ones, or what the dataclass's own ``__post_init__`` says of its values.
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where or 'the configuration'}: expected a table of keys, got {_shown(mapping)}")
    hints = get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    known = [field.name for field in fields]
    for key in mapping:
        if key not in known:
            raise ValueError(f"unknown key {_join(where, str(key))}: {_nearest(str(key), known, where)}")
    values = {}
    for field in fields:
        path = _join(where, field.name)
        if field.name in mapping:
            values[field.name] = _value(hints[field.name], mapping[field.name], path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{path} is missing: expected {_expected(hints[field.name])}")
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        if where and where not in str(error):
            raise ValueError(f"[{where}] {error}") from error
        raise ValueError(str(error)) from error


def _value(hint: Any, value: Any, path: str) -> Any:
    """``value`` as the annotation ``hint`` asks for, or ValueError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value, path)  # type: ignore[arg-type]
    if origin is Literal:
        return _choice(arguments, value, path)
    if origin in (Union, types.UnionType):
        return _first_that_fits(arguments, value, path, hint)
    if hint is type(None):
        if value is None:
            return None
    elif hint is bool or hint is str:
        if isinstance(value, hint):
            return value
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise ValueError(f"{path}: expected a finite number, got {value}")
            return float(value)
    elif origin is tuple:
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            return _items(arguments, value, path, hint)
    elif origin is dict:
        if isinstance(value, Mapping):
            return {
                _value(arguments[0], key, path): _value(arguments[1], item, _join(path, str(key)))
                for key, item in value.items()
            }
    else:
        raise TypeError(f"{path}: {hint!r} has no plain form; use scalars, tuples, Literal and dataclasses")
    raise ValueError(f"{path}: expected {_expected(hint)}, got {_shown(value)}")


def _choice(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    hint = did_you_mean(str(value), map(str, choices), shown=repr)
    listed = ", ".join(repr(choice) for choice in choices)
    raise ValueError(f"{path}: expected one of {listed}, got {_shown(value)}{hint}")


def _first_that_fits(alternatives: tuple[Any, ...], value: Any, path: str, hint: Any) -> Any:
    if value is None and type(None) in alternatives:
        return None
    rest = [alternative for alternative in alternatives if alternative is not type(None)]
    if len(rest) == 1:
        return _value(rest[0], value, path)  # its own message is the more precise one
    for alternative in rest:
        try:
            return _value(alternative, value, path)
        except ValueError:
            continue
    raise ValueError(f"{path}: expected {_expected(hint)}, got {_shown(value)}")


def _items(hints: tuple[Any, ...], values: Sequence[Any], path: str, hint: Any) -> tuple[Any, ...]:
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(values)
    if len(hints) != len(values):
        raise ValueError(f"{path}: expected {_expected(hint)}, got {_shown(values)}")
    return tuple(
        _value(item_hint, item, f"{path}[{index}]")
        for index, (item_hint, item) in enumerate(zip(hints, values, strict=True))
    )


def _nearest(key: str, known: list[str], where: str) -> str:
    near = did_you_mean(key, known, before="", cutoff=0.5, shown=partial(_join, where))
    return near or f"known here are {', '.join(sorted(known))}"


def _expected(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _NAMES:
        return _NAMES[hint]
    if hint is type(None):
        return "nothing"
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(alternative) for alternative in arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"a list, each {_expected(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} ({', '.join(_expected(item) for item in arguments)})"
    return "a table of keys"


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
