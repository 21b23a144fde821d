"""An image as text in base64, in any of its alphabets and wrappings, as bytes that may be such text, and in tensors.

The standard alphabet and that of addresses (RFC 4648, sections 4 and 5), with padding or without, with line breaks
(MIME, PEM), as a data URL (RFC 2397, perhaps percent-encoded), or as `{"b64": "<base64>"}`, as clients of KServe and
of TensorFlow Serving send it. Text that is plain base64 is read at once; only where that fails, other ways are tried.
"""

import base64
import binascii
import math
import re
from typing import Any
from urllib.parse import unquote

from maskx_errors import IMAGE_TOO_LARGE, RequestError, shown

_FOR_ADDRESSES = str.maketrans("-_", "+/")
_MOST_SIDES = 8
"""Sides of a tensor."""
_LOOKS_LIKE_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,64}={0,2}\s*")
"""No image file that is read begins with 64 such bytes: all have others within their first 16."""


def decoded_base64(text: Any, what: str, *, max_bytes: int) -> bytes:
    """The bytes of an image in base64; `text` is text, or `{"b64": text}`, as the module says.

    Raises RequestError: not text, an address of the web, no base64, nothing in it, or more than `max_bytes`.
    """
    if isinstance(text, dict) and text.keys() == {"b64"}:
        text = text["b64"]
    if not isinstance(text, str):
        raise RequestError(f"{what} is {shown(text)}; text in base64 is expected")
    text = text.strip()
    if text[:5].lower() == "data:":
        kind, comma, text = text.partition(",")
        if not comma or not kind.lower().rstrip().endswith(";base64"):
            raise RequestError(f"{what} is a data URL without ';base64,': {shown(kind)}")
        if "%" in text:
            text = unquote(text)
    refuse_address(text, what)
    # Without a copy where there is nothing to leave out, as in almost every request.
    if re.search(r"\s", text):
        text = "".join(text.split())
    size = len(text) * 3 // 4 - text[-2:].count("=")
    if size > max_bytes:
        raise too_large(what, size, max_bytes)
    try:
        image = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        image = _decoded_otherwise(text, what, error)
    return checked_image(image, what, max_bytes=max_bytes)


def _decoded_otherwise(text: str, what: str, error: ValueError) -> bytes:
    """What is no padded base64 of the standard alphabet: that of addresses, or either without its padding."""
    if text[:2] in ("b'", 'b"'):
        raise RequestError(
            f"{what} is {shown(text)}, as Python shows bytes; send the text: base64.b64encode(data).decode()"
        ) from error
    bare = text.rstrip("=")
    reason: object = error
    if "-" in bare or "_" in bare:
        if "+" in bare or "/" in bare:
            reason = "it has characters of both alphabets, - or _ and + or /"
            bare = ""
        bare = bare.translate(_FOR_ADDRESSES)
    if bare and len(bare) % 4 == 1:
        reason = f"it has {len(bare)} characters without the padding, which no text has: it is cut short"
    elif bare and len(text) - len(bare) <= 2:
        try:
            return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
        except (binascii.Error, ValueError) as other:
            reason = other
    raise RequestError(f"{what} is not valid base64 ({shown(text)}): {reason}") from error


def image_of_bytes(data: bytes, what: str, *, max_bytes: int) -> bytes:
    """An image that came as bytes: a file as it is, or its base64, perhaps as a data URL.

    Raises RequestError: an address, no base64 after all, nothing in it, or more than `max_bytes`.
    """
    start = data[:66]
    if start[:5].lower() == b"data:":
        return decoded_base64(data.decode("latin-1"), what, max_bytes=max_bytes)
    found = _LOOKS_LIKE_BASE64.match(start)
    if found and found.end() >= min(len(data), 64):
        return decoded_base64(data.decode("latin-1"), what, max_bytes=max_bytes)
    refuse_address(start.decode("latin-1"), what)
    return checked_image(data, what, max_bytes=max_bytes)


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


def flat(values: list[Any]) -> list[Any]:
    """The elements of a tensor, whose lists may lie in each other as its shape says."""
    for _ in range(_MOST_SIDES):
        if not any(isinstance(one, list) for one in values):
            break
        values = [inner for one in values for inner in (one if isinstance(one, list) else [one])]
    return values


def fits(shape: list[int], count: int) -> bool:
    """Whether a tensor of `count` elements may have the shape, in which one side may be -1, whatever is left."""
    known = math.prod(side for side in shape[:_MOST_SIDES] if side >= 0)
    if len(shape) > _MOST_SIDES or shape.count(-1) > 1:
        return False
    return known == count if -1 not in shape else known > 0 and count % known == 0


def binary_elements(binary: bytes, what: str) -> list[bytes]:
    """The elements of a BYTES tensor in its binary form. Raises RequestError: a length beyond the end."""
    elements: list[bytes] = []
    at = 0
    while at < len(binary):
        end = at + 4 + int.from_bytes(binary[at : at + 4], "little")
        if end > len(binary):
            raise RequestError(
                f"the binary data of {what} is cut short: element {len(elements)} ends at byte {end} of {len(binary)}; "
                "each element is its length, 4 bytes with the lowest first, and its bytes"
            )
        elements.append(binary[at + 4 : end])
        at = end
    return elements
