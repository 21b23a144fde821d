"""One request as the server received it -> image bytes and wishes (border 5), whatever road it came by.

A request is a mapping of names to values:

* `body`: what a REST client posted: an image, or JSON `{"image": "<base64>", ...parameters}`;
* `data`: the same, as a multipart field or as an entry of the gRPC map;
* parameters beside them, as form fields or gRPC entries, by the same names as in JSON.

Knows nothing of the server; the standard library is all it needs.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

MAX_DETECTIONS = 1000
"""Most detections that one request may ask for."""

IMAGE_FIELDS = ("body", "data")


class RequestError(ValueError):
    """A request that cannot be understood; the message names what was seen and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a request may choose.

    `score_threshold`: detections of this score or less are left out, 0..1. `max_detections`: at most so many, the
    best first, 1..MAX_DETECTIONS.
    """

    score_threshold: float
    max_detections: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image, still encoded, and what is wished for it."""

    image: bytes
    wishes: Wishes


def parse_request(request: Mapping[str, Any], defaults: Wishes) -> Request:
    """The image and the wishes of one request; `defaults` hold for what it does not say.

    Raises RequestError: no image, more than one, JSON or base64 that cannot be read, an unknown parameter, or a value
    that is not allowed.
    """
    given = [name for name in IMAGE_FIELDS if name in request]
    parameters = {name: value for name, value in request.items() if name not in IMAGE_FIELDS}
    if len(given) > 1:
        raise RequestError("the request has both a body and a field 'data'; send the image once")
    if not given:
        raise RequestError(
            "the request has no image: post its bytes as the body (curl -T photo.jpg URL), or as the multipart field "
            "'data' (curl -F data=@photo.jpg URL). A body sent as application/x-www-form-urlencoded (curl -d, "
            "--data-binary) is taken apart as a form; the names seen were "
            + (", ".join(_shown(name) for name in list(parameters)[:5]) or "none")
        )
    image = request[given[0]]
    if isinstance(image, dict | list) or _is_json(image):
        content = _json_object(image)
        image = _decoded_base64(content)
        for name, value in content.items():
            if name in parameters:
                raise RequestError(f"the parameter {_shown(name)} is given twice, in the JSON and beside it")
            if name != "image":
                parameters[name] = value
    if not isinstance(image, bytes | bytearray | memoryview):
        raise RequestError(
            f"the image came as text ({_shown(image)}), not as bytes; send it as image/jpeg, image/png or "
            "application/octet-stream, or in base64 as JSON"
        )
    return Request(image=bytes(image), wishes=parse_wishes(parameters, defaults))


def parse_wishes(parameters: Mapping[str, Any], defaults: Wishes) -> Wishes:
    """`defaults` with the parameters put in; values may be numbers, or text as str or UTF-8 bytes.

    Raises RequestError, naming the parameter, the value and what is allowed.
    """
    wishes = defaults
    for name, value in parameters.items():
        if name not in PARAMETERS:
            known = ", ".join(PARAMETERS)
            raise RequestError(f"unknown parameter {_shown(name)}; known are {known}")
        wishes = replace(wishes, **{name: PARAMETERS[name](name, value)})
    return wishes


def _score_threshold(name: str, value: Any) -> float:
    number = _number(value)
    if number is None or not 0.0 <= number <= 1.0:
        raise RequestError(f"{name} is {_shown(value)}; a number from 0 to 1 is allowed")
    return number


def _max_detections(name: str, value: Any) -> int:
    number = _number(value)
    if number is None or number != int(number) or not 1 <= number <= MAX_DETECTIONS:
        raise RequestError(f"{name} is {_shown(value)}; a whole number from 1 to {MAX_DETECTIONS} is allowed")
    return int(number)


PARAMETERS: dict[str, Callable[[str, Any], Any]] = {
    "score_threshold": _score_threshold,
    "max_detections": _max_detections,
}
"""Every parameter and its reader, by the name it has on every road."""


def _number(value: Any) -> float | None:
    """A finite number out of a number or a text; None where it is none."""
    if isinstance(value, bytes | bytearray):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_json(value: Any) -> bool:
    """Whether a body means to be JSON: no image format begins with a brace or a bracket."""
    if isinstance(value, str):
        return value.lstrip()[:1] in ("{", "[")
    if isinstance(value, bytes | bytearray):
        return value[:64].lstrip()[:1] in (b"{", b"[")
    return False


def _json_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict | list):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError('the JSON is not an object; expected {"image": "<base64>"}')
    return value


def _decoded_base64(content: dict[str, Any]) -> bytes:
    if "image" not in content:
        raise RequestError('the JSON has no "image"; expected {"image": "<base64>"}')
    text = content["image"]
    if not isinstance(text, str):
        raise RequestError(f'"image" is {_shown(text)}; a string in base64 is expected')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f'"image" is not valid base64: {error}') from error


def _shown(value: Any) -> str:
    """A value for a message: short, whatever it is."""
    if isinstance(value, bytes | bytearray):
        value = bytes(value[:50]).decode("utf-8", errors="replace")
    text = repr(value)
    return text if len(text) <= 50 else text[:47] + "..."
