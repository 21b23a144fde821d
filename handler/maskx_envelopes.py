"""One JSON object -> the images in it and what is wished for each: our own forms, and KServe's v1 and v2.

    {"image": "<base64>", ...parameters}
    {"images": ["<base64>", {"image": "<base64>", ...parameters}, ...], ...parameters}
    {"instances": [{"b64": "<base64>", ...parameters}, ...], "parameters": {...}}
    {"id": "...", "parameters": {...},
     "inputs": [{"name", "shape", "datatype": "BYTES", "data": ["<base64>", ...], "parameters": {...}}, ...]}

Knows nothing of the server; the standard library is all it needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from maskx_body import decoded_base64
from maskx_errors import TOO_MANY_IMAGES, RequestError, shown
from maskx_parameters import PARAMETERS, Given, unknown

V2_OUTPUT = "detections"
"""The one output that there is in an answer of v2."""

_LONGEST_ID = 256


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """The form of a request, which its answer takes too: "single", "several", "v1" or "v2"; `id` is v2's, if given."""

    kind: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image, still encoded, with the parameters that are for it alone."""

    image: bytes
    given: Given


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Images per request, and bytes of each as sent."""

    max_images: int
    max_image_bytes: int


def open_envelope(
    content: Mapping[str, Any], given: Given, limits: ImageLimits
) -> tuple[Envelope, list[Item | RequestError]]:
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


def read_item(
    content: Mapping[str, Any], what: str, limits: ImageLimits, names: Iterable[str] = ("image",)
) -> Item:
    """One image in a JSON object of its own, under one of `names`, with parameters beside it.

    Raises RequestError: no image or several, base64 that is none, or an unknown key.
    """
    names = list(names)
    found = [name for name in names if name in content]
    if len(found) != 1:
        keys = " or ".join(f'"{name}"' for name in names)
        raise RequestError(f"{what} is {shown(dict(content))}; one image as {keys} is expected in it")
    given = Given()
    _take(content, given, road=what, others=names)
    place = what if found[0] == "b64" else f'"{found[0]}" of {what}'
    image = decoded_base64(content[found[0]], place, max_bytes=limits.max_image_bytes)
    return Item(image=image, given=given)


def require_few(count: int, limits: ImageLimits) -> None:
    """Raises RequestError where a request has more images than are allowed."""
    if count > limits.max_images:
        raise RequestError(
            f"the request has {count} images; at most {limits.max_images} are allowed: send several requests",
            TOO_MANY_IMAGES,
        )


def _single(
    content: Mapping[str, Any], given: Given, limits: ImageLimits
) -> tuple[Envelope, list[Item | RequestError]]:
    _take(content, given, road="the JSON", others=["image"])
    image = decoded_base64(content["image"], '"image"', max_bytes=limits.max_image_bytes)
    return Envelope(kind="single"), [Item(image=image, given=Given())]


def _several(
    content: Mapping[str, Any], given: Given, limits: ImageLimits
) -> tuple[Envelope, list[Item | RequestError]]:
    _take(content, given, road="the JSON", others=["images"])
    return Envelope(kind="several"), _each(content, "images", limits, ["image"])


def _instances(
    content: Mapping[str, Any], given: Given, limits: ImageLimits
) -> tuple[Envelope, list[Item | RequestError]]:
    _parameters(content, given, ["instances", "parameters"])
    return Envelope(kind="v1"), _each(content, "instances", limits, ["b64", "image"])


def _each(
    content: Mapping[str, Any], key: str, limits: ImageLimits, image_keys: list[str]
) -> list[Item | RequestError]:
    """The images of the list under `key`; one that cannot be read is an error in its place."""
    items: list[Item | RequestError] = []
    for place, one in enumerate(_list(content[key], f'"{key}"', limits)):
        try:
            items.append(_bare_or_object(one, f"{key}[{place}]", limits, image_keys))
        except RequestError as error:
            items.append(error)
    return items


def _inputs(
    content: Mapping[str, Any], given: Given, limits: ImageLimits
) -> tuple[Envelope, list[Item | RequestError]]:
    _parameters(content, given, ["inputs", "id", "outputs", "parameters"])
    items: list[Item | RequestError] = []
    for place, tensor in enumerate(_list(content["inputs"], '"inputs"', limits)):
        what = f"inputs[{place}]"
        texts = _tensor(tensor, what)
        require_few(len(items) + len(texts), limits)
        for index, text in enumerate(texts):
            try:
                own = Given()
                _take(
                    _object(tensor.get("parameters", {}), f"{what}.parameters"),
                    own,
                    road=f"{what}.parameters",
                )
                image = decoded_base64(text, f"{what}.data[{index}]", max_bytes=limits.max_image_bytes)
                items.append(Item(image=image, given=own))
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
        return Item(image=image, given=Given())
    return read_item(_object(one, what), what, limits, names)


def _parameters(content: Mapping[str, Any], given: Given, known: list[str]) -> None:
    """The parameters of one of KServe's envelopes, which has them in an object of their own."""
    for name in content:
        if name in PARAMETERS:
            raise RequestError(f'{name} stands beside "{known[0]}"; put it into "parameters"')
        if name not in known:
            raise unknown(name, "key in the JSON", known)
    _take(_object(content.get("parameters", {}), '"parameters"'), given, road='"parameters"')


def _take(content: Mapping[str, Any], given: Given, *, road: str, others: Iterable[str] = ()) -> None:
    """Puts every parameter of an object into `given`; `others` are the keys that are none."""
    others = list(others)
    for name, value in content.items():
        if name in PARAMETERS:
            given.add(name, value, road)
        elif name not in others:
            raise unknown(name, f"parameter in {road}", [*others, *PARAMETERS])


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
