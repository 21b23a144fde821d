"""Bytes as they were sent -> what they hold: packed or not, JSON or an image, base64 or not.

Everything here may come from somebody who means harm: no input makes these functions slow, big or raise anything but
RequestError. Knows nothing of the server; the standard library is all it needs.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections import Counter
from typing import Any

from maskx_errors import IMAGE_TOO_LARGE, RequestError, shown

MOST_JSON_PARTS = 100_000
"""Commas, colons, braces and brackets of a JSON: they, not its length, decide what it costs to read."""

_MOST_DIGITS = 50


def unpacked(data: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """A body as it was before `Content-Encoding`: gzip, identity or "" are read.

    Raises RequestError: another encoding, bytes that are not one complete gzip stream, or more than `max_bytes` in it.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return data
    if encoding not in ("gzip", "x-gzip"):
        raise RequestError(
            f"Content-Encoding is {shown(encoding)}; gzip is read, or a body without this header"
        )
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        content = stream.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise RequestError(f"Content-Encoding is gzip, but the body is not: {error}") from error
    if len(content) > max_bytes:
        raise RequestError(f"the unpacked body has more than {max_bytes} bytes", IMAGE_TOO_LARGE)
    if not stream.eof or stream.unused_data:
        raise RequestError("Content-Encoding is gzip, but the body is not one complete gzip stream")
    return content


def looks_like_json(value: bytes | bytearray | str) -> bool:
    """Whether a body means to be JSON: no image format begins with a brace or a bracket."""
    if isinstance(value, str):
        return value[:64].lstrip("\ufeff \t\r\n")[:1] in ("{", "[")
    start = bytes(value[:64])
    return start.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")[:1] in (b"{", b"[")


def json_object(value: bytes | bytearray | str, what: str) -> dict[str, Any]:
    """The JSON object that the bytes of `what` ("the body") are, as strictly as RFC 8259 has it.

    Raises RequestError: no JSON, no object, a key that is there twice, NaN, or more parts than MOST_JSON_PARTS.
    """
    parts = sum(
        value.count(sign) if isinstance(value, str) else value.count(sign.encode()) for sign in ",:{["
    )
    if parts > MOST_JSON_PARTS:
        raise RequestError(f"{what} is JSON of {parts} parts; at most {MOST_JSON_PARTS} are read")
    try:
        content = json.loads(
            value, object_pairs_hook=_without_repeats, parse_constant=_no_number, parse_int=_short_integer
        )
    except RecursionError as error:
        raise RequestError(f"{what} is not valid JSON: too many levels inside each other") from error
    except ValueError as error:
        raise RequestError(f"{what} is not valid JSON: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise RequestError(
            f'{what} is JSON, but not an object: {shown(content)}; expected {{"image": "<base64>"}}'
        )
    return content


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"it is not {error.encoding} at byte {error.start}"
    return str(error)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(repeated)} is there twice")
    return content


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON")


def _short_integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def decoded_base64(text: Any, what: str, *, max_bytes: int) -> bytes:
    """The bytes of an image in base64; `text` may be a data URL, and may have line breaks.

    `{"b64": "<base64>"}`, which KServe's clients send, is read as its text.

    Raises RequestError: not text, an address of the web, no base64, nothing in it, or more than `max_bytes`.
    """
    if isinstance(text, dict) and text.keys() == {"b64"}:
        text = text["b64"]
    if not isinstance(text, str):
        raise RequestError(f"{what} is {shown(text)}; text in base64 is expected")
    text = text.strip()
    if text[:5].lower() == "data:":
        kind, comma, text = text.partition(",")
        if not comma or not kind.lower().endswith(";base64"):
            raise RequestError(f"{what} is a data URL without ';base64,': {shown(kind)}")
    refuse_address(text, what)
    # Without a copy where there is nothing to leave out, as in almost every request.
    if re.search(r"\s", text):
        text = "".join(text.split())
    size = len(text) // 4 * 3 - text[-2:].count("=")
    if size > max_bytes:
        raise too_large(what, size, max_bytes)
    try:
        image = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{what} is not valid base64 ({shown(text)}): {error}") from error
    return checked_image(image, what, max_bytes=max_bytes)


def checked_image(image: bytes, what: str, *, max_bytes: int) -> bytes:
    """The image as it is. Raises RequestError where it has no byte or more than `max_bytes`."""
    if not image:
        raise RequestError(f"{what} is empty; the bytes of an image are expected")
    if len(image) > max_bytes:
        raise too_large(what, len(image), max_bytes)
    return image


def refuse_address(text: str, what: str) -> None:
    """Raises RequestError where the text is an address of the web or of a file: nothing is ever fetched."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,20}://", text):
        raise RequestError(f"{what} is an address ({shown(text)}); none is fetched, send the image itself")


def too_large(what: str, size: int, max_bytes: int) -> RequestError:
    """The error for an image of `size` bytes."""
    return RequestError(
        f"{what} has {size} bytes; at most {max_bytes} are allowed: send it smaller, or as JPEG",
        IMAGE_TOO_LARGE,
    )
