"""One JSON object -> the images in it and the parameters of each: our own forms, and KServe's v1 and v2.

    {"image": "<base64>", ...parameters}
    {"images": ["<base64>", {"image": "<base64>", ...parameters}, ...], ...parameters}
    {"instances": [{"b64": "<base64>", ...parameters}, ...], "parameters": {...}}
    {"id": "...", "parameters": {...},
     "inputs": [{"name", "shape", "datatype": "BYTES", "data": ["<base64>", ...], "parameters": {...}}, ...]}

No input, however ill meant, makes these functions slow, big or raise anything but RequestError. Knows nothing of the
server; the standard library is all it needs.
"""

import base64
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from maskx_errors import IMAGE_TOO_LARGE, TOO_MANY_IMAGES, RequestError, shown
from maskx_parameters import PARAMETERS, GivenParameters, unknown

V2_OUTPUT = "detections"
"""The one output that there is in an answer of v2."""

_LONGEST_ID = 256

MOST_JSON_PARTS = 100_000
"""Commas, colons, braces and brackets of a JSON: they, not its length, decide what it costs to read."""

_MOST_DIGITS = 50


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """The form of a request, which its answer takes too: "single", "several", "v1" or "v2"; `id` is v2's, if given."""

    kind: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image, still encoded, with the parameters that are for it alone."""

    image: bytes
    given: GivenParameters


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Images per request, and bytes of each as sent."""

    max_images: int
    max_image_bytes: int


Content = Mapping[str, Any]
"""A JSON object."""
Items = list[Item | RequestError]
"""Images in order, or in the place of one the error that it is."""
Opened = tuple[Envelope, Items]


def open_envelope(content: Content, given: GivenParameters, limits: ImageLimits) -> Opened:
    """The images of a JSON object in order, a bad one as its error; what holds for all of them goes into `given`.

    Raises RequestError where the object as a whole is wrong; a "single" bad image is that, too.
    """
    kinds = [kind for kind in _OPENERS if kind in content]
    if len(kinds) != 1:
        seen = ", ".join(shown(name) for name in list(content)[:5]) or "nothing"
        what = "has " + " and ".join(f'"{kind}"' for kind in kinds) if kinds else 'has no "image"'
        raise RequestError(
            f'the JSON {what}; exactly one of "image", "images", "instances" and "inputs" is expected, seen were {seen}'
        )
    return _OPENERS[kinds[0]](content, given, limits)


def read_item(content: Content, what: str, limits: ImageLimits, names: Iterable[str] = ("image",)) -> Item:
    """One image in a JSON object of its own, under one of `names`, with parameters beside it.

    Raises RequestError: no image or several, text that is not base64, or an unknown key.
    """
    names = list(names)
    present = [name for name in names if name in content]
    if len(present) != 1:
        keys = " or ".join(f'"{name}"' for name in names)
        raise RequestError(f"{what} is {shown(dict(content))}; one image as {keys} is expected in it")
    given = GivenParameters()
    _take(content, given, place=what, others=names)
    name = present[0]
    image_of = what if name == "b64" else f'"{name}" of {what}'
    image = decoded_base64(content[name], image_of, max_bytes=limits.max_image_bytes)
    return Item(image=image, given=given)


def require_few(count: int, limits: ImageLimits) -> None:
    """Raises RequestError where a request has more images than are allowed."""
    if count > limits.max_images:
        raise RequestError(
            f"the request has {count} images; at most {limits.max_images} are allowed: send several requests",
            TOO_MANY_IMAGES,
        )


def _single(content: Content, given: GivenParameters, limits: ImageLimits) -> Opened:
    _take(content, given, place="the JSON", others=["image"])
    image = decoded_base64(content["image"], '"image"', max_bytes=limits.max_image_bytes)
    return Envelope(kind="single"), [Item(image=image, given=GivenParameters())]


def _several(content: Content, given: GivenParameters, limits: ImageLimits) -> Opened:
    _take(content, given, place="the JSON", others=["images"])
    return Envelope(kind="several"), _each(content, "images", limits, ["image"])


def _instances(content: Content, given: GivenParameters, limits: ImageLimits) -> Opened:
    _take_from_parameters(content, given, ["instances", "parameters"])
    return Envelope(kind="v1"), _each(content, "instances", limits, ["b64", "image"])


def _each(content: Content, key: str, limits: ImageLimits, image_keys: list[str]) -> Items:
    """The images of the list under `key`; one that cannot be read is an error in its place."""
    items: Items = []
    for number, one in enumerate(_list(content[key], f'"{key}"', limits)):
        try:
            items.append(_bare_or_object(one, f"{key}[{number}]", limits, image_keys))
        except RequestError as error:
            items.append(error)
    return items


def _inputs(content: Content, given: GivenParameters, limits: ImageLimits) -> Opened:
    _take_from_parameters(content, given, ["inputs", "id", "outputs", "parameters"])
    items: Items = []
    for number, tensor in enumerate(_list(content["inputs"], '"inputs"', limits)):
        what = f"inputs[{number}]"
        texts = _tensor(tensor, what)
        require_few(len(items) + len(texts), limits)
        for index, text in enumerate(texts):
            try:
                of_tensor, place = GivenParameters(), f"{what}.parameters"
                _take(_object(tensor.get("parameters", {}), place), of_tensor, place=place)
                image = decoded_base64(text, f"{what}.data[{index}]", max_bytes=limits.max_image_bytes)
                items.append(Item(image=image, given=of_tensor))
            except RequestError as error:
                items.append(error)
    if not items:
        raise RequestError('"inputs" has no image; send each in base64 as an element of "data"')
    for one in _list_of_any(content.get("outputs", []), '"outputs"'):
        if not isinstance(one, dict) or one.get("name") != V2_OUTPUT:
            raise RequestError(f'"outputs" has {shown(one)}; the only output is {{"name": "{V2_OUTPUT}"}}')
    return Envelope(kind="v2", id=_id(content.get("id"))), items


_OPENERS = {"image": _single, "images": _several, "instances": _instances, "inputs": _inputs}


def _tensor(tensor: Any, what: str) -> list[Any]:
    """The elements of one of v2's input tensors. Raises RequestError where it is not one of BYTES."""
    _object(tensor, what)
    known = ["name", "shape", "datatype", "data", "parameters"]
    for name in tensor:
        if name not in known:
            raise unknown(name, f"key in {what}", known)
    if tensor.get("datatype") != "BYTES":
        raise RequestError(
            f'the datatype of {what} is {shown(tensor.get("datatype"))}; "BYTES" is expected, each element of "data" '
            "an image file in base64"
        )
    texts = _list_of_any(tensor.get("data"), f'"data" of {what}')
    shape = _list_of_any(tensor.get("shape", [len(texts)]), f'"shape" of {what}')
    if not all(type(side) is int and 0 <= side <= 1_000_000 for side in shape) or (
        math.prod(shape[:8]) != len(texts) or len(shape) > 8
    ):
        raise RequestError(f"the shape of {what} is {shown(shape)}, but its data has {len(texts)} elements")
    return texts


def _id(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and len(value) <= _LONGEST_ID):
        return value
    raise RequestError(f'"id" is {shown(value)}; text of at most {_LONGEST_ID} characters is expected')


def _bare_or_object(one: Any, what: str, limits: ImageLimits, names: list[str]) -> Item:
    """An image of a list: its base64 alone, or an object that may have parameters beside it."""
    if isinstance(one, str):
        image = decoded_base64(one, what, max_bytes=limits.max_image_bytes)
        return Item(image=image, given=GivenParameters())
    return read_item(_object(one, what), what, limits, names)


def _take_from_parameters(content: Content, given: GivenParameters, known: list[str]) -> None:
    """The parameters of one of KServe's envelopes, which has them in an object of their own."""
    for name in content:
        if name in PARAMETERS:
            raise RequestError(f'{name} stands beside "{known[0]}"; put it into "parameters"')
        if name not in known:
            raise unknown(name, "key in the JSON", known)
    _take(_object(content.get("parameters", {}), '"parameters"'), given, place='"parameters"')


def _take(content: Content, given: GivenParameters, *, place: str, others: Iterable[str] = ()) -> None:
    """Puts every parameter of an object into `given`; `others` are the keys that mean something else."""
    others = list(others)
    for name, value in content.items():
        if name in PARAMETERS:
            given.add(name, value, place)
        elif name not in others:
            raise unknown(name, f"parameter in {place}", [*others, *PARAMETERS])


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{what} is {shown(value)}; an object is expected")
    return value


def _list_of_any(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{what} is {shown(value)}; a list is expected")
    return value


def _list(value: Any, what: str, limits: ImageLimits) -> list[Any]:
    """A list with something in it, and not with more images than are allowed."""
    if not _list_of_any(value, what):
        raise RequestError(f"{what} is an empty list; send at least one image")
    require_few(len(value), limits)
    return value


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
    signs: Iterable[Any] = ",:{[" if isinstance(value, str) else (b",", b":", b"{", b"[")
    parts = sum(value.count(sign) for sign in signs)
    if parts > MOST_JSON_PARTS:
        raise RequestError(f"{what} is JSON of {parts} parts; at most {MOST_JSON_PARTS} are read")
    try:
        numbers: dict[str, Any] = {"parse_constant": _no_number, "parse_int": _short_integer}
        content = json.loads(value, object_pairs_hook=_without_repeats, **numbers)
    except RecursionError as error:
        raise RequestError(f"{what} is not valid JSON: too many levels inside each other") from error
    except ValueError as error:
        raise RequestError(f"{what} is not valid JSON: {_reason(error)}") from error
    if not isinstance(content, dict):
        seen = f"{what} is JSON, but not an object: {shown(content)}"
        raise RequestError(f'{seen}; expected {{"image": "<base64>"}}')
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
