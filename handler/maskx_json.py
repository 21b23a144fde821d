"""One JSON object -> the images in it and the parameters of each: our own forms, those of TorchServe's handlers, of
KServe's v1 and v2, and of TensorFlow Serving.

    {"image": "<base64>", ...parameters}            also under "data", "body", "b64" or "image_bytes"
    {"images": ["<base64>", {"image": "<base64>", ...parameters}, ...], ...parameters}
    {"instances": [{"b64": "<base64>", ...parameters}, ...], "parameters": {...}}        (v1, TensorFlow's rows)
    {"inputs": {"image_bytes": ["<base64>", ...]}, "parameters": {...}}                  (TensorFlow's columns)
    {"id": "...", "parameters": {...},
     "inputs": [{"name", "shape", "datatype": "BYTES", "data": ["<base64>", ...], "parameters": {...}}, ...]}    (v2)

No input, however ill meant, makes these functions slow, big or raise anything but RequestError. Knows nothing of the
server; the standard library is all it needs.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from maskx_encoded import binary_elements, decoded_base64, fits, flat, image_of_bytes
from maskx_errors import TOO_MANY_IMAGES, RequestError, shown
from maskx_parameters import PARAMETERS, GivenParameters, unknown

V2_OUTPUT = "detections"
"""The one output that there is in an answer of v2."""

IMAGE_NAMES = ("image", "data", "body", "b64", "image_bytes")
"""Keys under which others' examples have an image; the first is ours. `{"b64": ...}` is one under any name."""

_PASSED_OVER = ("key", "target", "caption")
"""What those examples have beside it, which means nothing here: a number, a class to explain, a text."""

_V2_PASSED_OVER = ("binary_data_output", "content_type")
"""Parameters of v2's clients: the answer is JSON all the same, and what an element is is seen from it."""

_LONGEST_ID = 256

MOST_JSON_PARTS = 100_000
"""Commas, colons, braces and brackets of a JSON: they, not its length, decide what it costs to read."""

_MOST_DIGITS = 50


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """The form of a request, which its answer takes too: "single", "several", "v1", "columns" (TensorFlow Serving's) or
    "v2"; `id` is v2's, if given."""

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
        alone = [name for name, value in content.items() if _is_b64(name, value)]
        if not kinds and len(alone) == 1:
            return _single(content, given, limits)
        seen = ", ".join(shown(name) for name in list(content)[:5]) or "nothing"
        what = "has " + " and ".join(f'"{kind}"' for kind in kinds) if kinds else 'has no "image"'
        raise RequestError(
            f'the JSON {what}; exactly one of "image", "images", "instances" and "inputs" is expected, seen were {seen}'
        )
    return _OPENERS[kinds[0]](content, given, limits)


def read_item(content: Content, what: str, limits: ImageLimits, passed_over: Iterable[str] = ()) -> Item:
    """One image in a JSON object of its own, under one of IMAGE_NAMES or as {"b64": ...}, with parameters beside it.

    Raises RequestError: no image or several, text that is not base64, or an unknown key.
    """
    name = _image_name(content, what)
    given = GivenParameters()
    _take(content, given, place=what, others=[name, *passed_over])
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


def _image_name(content: Content, what: str) -> str:
    """The key of the only image in an object."""
    present = [name for name in content if name in IMAGE_NAMES or _is_b64(name, content[name])]
    if len(present) != 1:
        has = "several images" if present else "no image"
        raise RequestError(
            f'{what} is {shown(dict(content))}, which has {has}; one is expected in it, as "image", "data" or "b64"'
        )
    return present[0]


def _is_b64(name: str, value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and name not in PARAMETERS


def _single(content: Content, given: GivenParameters, limits: ImageLimits) -> Opened:
    name = _image_name(content, "the JSON")
    _take(content, given, place="the JSON", others=[name])
    image = decoded_base64(content[name], f'"{name[:50]}"', max_bytes=limits.max_image_bytes)
    return Envelope(kind="single"), [Item(image=image, given=GivenParameters())]


def _several(content: Content, given: GivenParameters, limits: ImageLimits) -> Opened:
    _take(content, given, place="the JSON", others=["images"])
    return Envelope(kind="several"), _each(content["images"], "images", limits)


def _instances(
    content: Content, given: GivenParameters, limits: ImageLimits, key: str = "instances"
) -> Opened:
    _take_from_parameters(content, given, [key, "signature_name", "parameters"])
    value = content[key]
    rows = [value] if isinstance(value, str | dict) else value
    return Envelope(kind="v1"), _each(rows, key, limits, _PASSED_OVER)


def _examples(content: Content, given: GivenParameters, limits: ImageLimits) -> Opened:
    """As TensorFlow Serving's document writes them for classification."""
    return _instances(content, given, limits, key="examples")


def _columns(content: Content, given: GivenParameters, limits: ImageLimits) -> Opened:
    """TensorFlow Serving's "columnar" form: one input by itself, or by its name, of one image or several."""
    _take_from_parameters(content, given, ["inputs", "signature_name", "parameters"])
    value, what = content["inputs"], "inputs"
    if isinstance(value, dict) and value.keys() != {"b64"}:
        if len(value) != 1:
            raise RequestError(
                f'"inputs" is {shown(value)}; one input, with one image or a list of them, is expected'
            )
        ((name, value),) = value.items()
        what = f"inputs[{shown(name)}]"
    rows = [value] if isinstance(value, str | dict) else value
    return Envelope(kind="columns"), _each(rows, what, limits)


def _each(rows: Any, what: str, limits: ImageLimits, passed_over: Iterable[str] = ()) -> Items:
    """The images of a list; one that cannot be read is an error in its place."""
    items: Items = []
    for number, one in enumerate(_list(rows, f'"{what}"', limits)):
        try:
            items.append(_bare_or_object(one, f"{what}[{number}]", limits, passed_over))
        except RequestError as error:
            items.append(error)
    return items


def _inputs(content: Content, given: GivenParameters, limits: ImageLimits) -> Opened:
    value = content["inputs"]
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, str) or (isinstance(first, dict) and (value is first or first.keys() == {"b64"})):
        return _columns(content, given, limits)
    _take_from_parameters(content, given, ["inputs", "id", "outputs", "parameters"])
    items: Items = []
    for number, tensor in enumerate(_list(content["inputs"], '"inputs"', limits)):
        what = f"inputs[{number}]"
        texts = _tensor(tensor, what)
        require_few(len(items) + len(texts), limits)
        for index, text in enumerate(texts):
            try:
                of_tensor, place = GivenParameters(), f"{what}.parameters"
                given_there = _object(tensor.get("parameters", {}), place)
                _take(given_there, of_tensor, place=place, others=_V2_PASSED_OVER)
                place, most = f"{what}.data[{index}]", {"max_bytes": limits.max_image_bytes}
                read = image_of_bytes if isinstance(text, bytes) else decoded_base64
                items.append(Item(image=read(text, place, **most), given=of_tensor))
            except RequestError as error:
                items.append(error)
    if not items:
        raise RequestError('"inputs" has no image; send each in base64 as an element of "data"')
    for one in _list_of_any(content.get("outputs", []), '"outputs"'):
        if not isinstance(one, dict) or one.get("name") != V2_OUTPUT:
            raise RequestError(f'"outputs" has {shown(one)}; the only output is {{"name": "{V2_OUTPUT}"}}')
    return Envelope(kind="v2", id=_id(content.get("id"))), items


_OPENERS = dict.fromkeys(IMAGE_NAMES, _single) | {
    "images": _several,
    "instances": _instances,
    "examples": _examples,
    "inputs": _inputs,
}


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
    data = tensor.get("data")
    texts = flat(data) if isinstance(data, list) else [data]
    if not isinstance(data, str | list | dict):
        raise RequestError(f'"data" of {what} is {shown(data)}; a list is expected')
    shape = tensor.get("shape", [len(texts)])
    sides = [shape] if type(shape) is int else _list_of_any(shape, f'"shape" of {what}')
    if not all(type(side) is int and -1 <= side <= 1_000_000 for side in sides) or not fits(
        sides, len(texts)
    ):
        raise RequestError(f"the shape of {what} is {shown(shape)}, but its data has {len(texts)} elements")
    if len(texts) > 1 and all(isinstance(one, str) and len(one) == 1 for one in texts):
        return ["".join(texts)]  # as the list() of a text in TorchServe's tobytes.py makes it
    if texts and all(type(one) is int and 0 <= one <= 255 for one in texts):
        return [bytes(texts)]
    return texts


def with_binary_data(content: dict[str, Any], binary: bytes) -> dict[str, Any]:
    """A v2 request whose tensors' data lies behind the JSON (KServe's binary tensor data extension), put into it.

    Each element is its length, 4 bytes with the lowest first, and its bytes.

    Raises RequestError: sizes that do not agree with the bytes that are there.
    """
    inputs, at = [], 0
    for number, tensor in enumerate(_list_of_any(content.get("inputs"), '"inputs"')):
        given = tensor.get("parameters") if isinstance(tensor, dict) else None
        if isinstance(given, dict) and "binary_data_size" in given:
            size = given["binary_data_size"]
            if type(size) is not int or not 0 <= size <= len(binary) - at:
                raise RequestError(
                    f"binary_data_size of inputs[{number}] is {shown(size)}, but {len(binary) - at} bytes are left "
                    "behind the JSON"
                )
            others = {name: value for name, value in given.items() if name != "binary_data_size"}
            data = binary_elements(binary[at : at + size], f"inputs[{number}]")
            tensor, at = {**tensor, "parameters": others, "data": data}, at + size
        inputs.append(tensor)
    if at < len(binary):
        raise RequestError(f"{len(binary) - at} bytes behind the JSON belong to none of its inputs")
    return {**content, "inputs": inputs}


def _id(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and len(value) <= _LONGEST_ID):
        return value
    raise RequestError(f'"id" is {shown(value)}; text of at most {_LONGEST_ID} characters is expected')


def _bare_or_object(one: Any, what: str, limits: ImageLimits, passed_over: Iterable[str]) -> Item:
    """An image of a list: its base64 alone, or an object that may have parameters beside it."""
    if isinstance(one, str):
        image = decoded_base64(one, what, max_bytes=limits.max_image_bytes)
        return Item(image=image, given=GivenParameters())
    if isinstance(one, list | int | float):
        raise RequestError(
            f"{what} is {shown(one)}; an image file in base64 is expected, not pixels as numbers"
        )
    return read_item(_object(one, what), what, limits, passed_over)


def _take_from_parameters(content: Content, given: GivenParameters, known: list[str]) -> None:
    """The parameters of one of KServe's envelopes, which has them in an object of their own."""
    if not isinstance(content.get("signature_name", ""), str):
        raise RequestError(f'"signature_name" is {shown(content["signature_name"])}; text is expected')
    for name in content:
        if name in PARAMETERS:
            raise RequestError(f'{name} stands beside "{known[0]}"; put it into "parameters"')
        if name not in known:
            raise unknown(name, "key in the JSON", known)
    parameters = _object(content.get("parameters", {}), '"parameters"')
    _take(parameters, given, place='"parameters"', others=_V2_PASSED_OVER if "id" in known else ())


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
