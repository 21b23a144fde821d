"""One request as the server received it -> images and parameters; and what else its HTTP headers say.

A request is a mapping of names to values, and its headers:

* `body`: what a REST client posted: an image, or JSON (maskx_json), perhaps packed with gzip;
* `data`, `data_1`, ...: images, or the same JSON, as multipart fields or as entries of the gRPC map;
* parameters beside them, as fields, entries or headers, by the same names as in JSON.

TorchServe gives the same mapping for a body, a multipart form, the query of /models/maskx/invoke and the map of gRPC.
Of several fields with one name it keeps the last, of a form that it cannot read nothing.

A header of the answer with a line break, or other than ASCII, would end the worker; so what comes from the client goes
back only if it has the form that is expected.

Knows nothing else of the server; the standard library is all it needs.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskx_encoded import binary_elements, image_of_bytes
from maskx_errors import IMAGE_TOO_LARGE, RequestError, shown
from maskx_json import (
    Envelope,
    ImageLimits,
    Item,
    json_object,
    looks_like_json,
    open_envelope,
    read_item,
    require_few,
    with_binary_data,
)
from maskx_parameters import PARAMETERS, CategoryIndex, GivenParameters, Parameters, given_in_headers, unknown

_SINGLE = Envelope(kind="single")

_IMAGE_FIELD = re.compile(r"data(?:_?([0-9]{1,6}))?")

_ROUTING = ("model_name", "model_version")
"""What the query of /invocations tells TorchServe, which hands it on."""

_BYTES_AROUND_A_FIELD = 2048
"""More than a boundary, a name, a file name and a content type ever take."""

LONGEST_QUEUE = 3600.0
"""Seconds in a queue; a header that says more is wrong."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_QUALITY = re.compile(r"\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*")
_REQUEST_START = re.compile(r"t=([0-9]{1,12}(?:\.[0-9]{1,9})?)")


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One image, still encoded, and its parameters."""

    image: bytes
    parameters: Parameters


@dataclass(frozen=True, kw_only=True)
class Request:
    """The images of one request, in order, at least one; where one of several cannot be understood, its error."""

    images: tuple[ImageRequest | RequestError, ...]
    envelope: Envelope


def parse_request(
    request: Mapping[str, Any],
    headers: Mapping[str, Any],
    defaults: Parameters,
    categories: CategoryIndex,
    *,
    max_images: int,
    max_image_bytes: int,
) -> Request:
    """The images and the parameters of one request.

    Args:
        request: the fields, as bytes, or as text or parsed JSON where the server decodes them.
        headers: of HTTP, in any case, text; other values among them are left out. Empty for gRPC.
        defaults: what holds where the request says nothing.
        categories: that may be asked for.
        max_images: of one request.
        max_image_bytes: of each image, encoded, and of a packed body as it is when unpacked (in base64).

    Raises:
        RequestError: the request as a whole, or its only image, cannot be understood or is not allowed.
    """
    limits = ImageLimits(max_images=max_images, max_image_bytes=max_image_bytes)
    given = given_in_headers(headers)
    check_form(request, headers)
    fields = images_in(request)
    if not fields:
        seen = ", ".join(shown(name) for name in list(request)[:5]) or "none"
        raise RequestError(
            "the request has no image: post its bytes as the body (curl -T photo.jpg URL), or as the field 'data' "
            f"(curl -F data=@photo.jpg URL); the fields seen were {seen}"
        )
    take_parameters(request, given)
    if "body" in fields:
        fields["body"] = _unpacked_body(fields["body"], headers, limits)
    if "body" in fields and (length := header(headers, "inference-header-content-length")):
        fields["body"] = _with_binary_data(fields["body"], length)
    if list(fields) in (["body"], ["data"]):
        name, value = next(iter(fields.items()))
        envelope, items = _one_field(
            value, "the body" if name == "body" else "the field 'data'", given, limits, _says_json(headers)
        )
    else:
        require_few(len(fields), limits)
        envelope = Envelope(kind="several")
        items = [_numbered_field(value, f"the field {shown(name)}", limits) for name, value in fields.items()]
    parameters = given.applied_to(defaults, categories)
    _refuse_overlay(parameters, envelope)
    images = tuple(_image_request(item, parameters, envelope, categories) for item in items)
    return Request(images=images, envelope=envelope)


def _one_field(
    value: Any, what: str, given: GivenParameters, limits: ImageLimits, says_json: bool
) -> tuple[Envelope, list[Item | RequestError]]:
    """The only image field: an image, or JSON with one or several."""
    if isinstance(value, list):
        raise RequestError(f'{what} is JSON, but not an object; expected {{"image": "<base64>"}}')
    if isinstance(value, dict):
        return open_envelope(value, given, limits)
    if isinstance(value, str | bytes | bytearray) and (
        looks_like_json(value) or (says_json and what == "the body" and len(value) > 0)
    ):
        return open_envelope(json_object(value, what), given, limits)
    return _SINGLE, [Item(image=_raw_image(value, what, limits), given=GivenParameters())]


def _numbered_field(value: Any, what: str, limits: ImageLimits) -> Item | RequestError:
    """One of several image fields: an image, or JSON with one."""
    try:
        if isinstance(value, str | bytes | bytearray) and looks_like_json(value):
            value = json_object(value, what)
        if isinstance(value, dict):
            return read_item(value, what, limits)
        return Item(image=_raw_image(value, what, limits), given=GivenParameters())
    except RequestError as error:
        return error


def _raw_image(value: Any, what: str, limits: ImageLimits) -> bytes:
    """The bytes of an image that came as they are, or in base64, perhaps as a data URL."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise RequestError(
            f"{what} came as text ({shown(value)}), not as bytes; send it as image/jpeg, image/png or "
            "application/octet-stream, or in base64 as JSON"
        )
    return image_of_bytes(bytes(value), what, max_bytes=limits.max_image_bytes)


def _image_request(
    item: Item | RequestError, parameters: Parameters, envelope: Envelope, categories: CategoryIndex
) -> ImageRequest | RequestError:
    if isinstance(item, RequestError):
        return item
    try:
        parameters = item.given.applied_to(parameters, categories)
        _refuse_overlay(parameters, envelope)
    except RequestError as error:
        return error
    return ImageRequest(image=item.image, parameters=parameters)


def _refuse_overlay(parameters: Parameters, envelope: Envelope) -> None:
    if parameters.output == "overlay" and envelope.kind != "single":
        raise RequestError(
            "output is 'overlay', which answers with a picture: it needs exactly one image, sent as the body, as the "
            'field \'data\' or as {"image": "<base64>"}'
        )


def _unpacked_body(value: Any, headers: Mapping[str, Any], limits: ImageLimits) -> Any:
    encoding = header(headers, "content-encoding")
    if not encoding or not isinstance(value, bytes | bytearray):
        return value
    in_base64 = limits.max_image_bytes // 3 * 4 + 65_536
    return unpacked(bytes(value), encoding, max_bytes=in_base64)


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


def _with_binary_data(value: Any, length: str) -> Any:
    """A v2 body of which `length` bytes are JSON and the rest the data of its tensors; of 0 bytes, those of one tensor.

    Raises RequestError: a length beyond the body, no JSON object, or data that does not agree with it.
    """
    if not isinstance(value, bytes | bytearray):
        return value
    size = int(length) if re.fullmatch("[0-9]{1,10}", length) else len(value) + 1
    if size > len(value):
        raise RequestError(
            f"Inference-Header-Content-Length is {shown(length)}; the bytes of JSON at the body's begin are "
            f"expected, at most its {len(value)}"
        )
    binary = bytes(value[size:])
    if size == 0:
        data = binary_elements(binary, "the body")
        return {"inputs": [{"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": data}]}
    return with_binary_data(json_object(value[:size], "the body"), binary)


def _says_json(headers: Mapping[str, Any]) -> bool:
    return re.fullmatch(r"application/([a-z0-9.-]{1,100}\+)?json", _media_type(headers)) is not None


def _media_type(headers: Mapping[str, Any]) -> str:
    """Content-Type without its parameters, in lower case; "" where there is none."""
    return header(headers, "content-type").split(";")[0].strip().lower()


def images_in(request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are images, in order: `body`, or `data`, then `data_1`, `data_2`, ... by their numbers.

    Raises RequestError: a body and a field, or two fields of one number (data1 and data_01).
    """
    numbered: dict[int, str] = {}
    for name in request:
        match = _IMAGE_FIELD.fullmatch(name)
        if match:
            number = -1 if match[1] is None else int(match[1])
            if number in numbered:
                raise RequestError(
                    f"the fields {shown(numbered[number])} and {shown(name)} have the same number; number them "
                    "data_1, data_2, ..."
                )
            numbered[number] = name
    if "body" in request:
        if numbered:
            raise RequestError(
                f"the request has both a body and a field {shown(numbered[min(numbered)])}; send the image once"
            )
        return {"body": request["body"]}
    return {numbered[number]: request[numbered[number]] for number in sorted(numbered)}


def take_parameters(request: Mapping[str, Any], given: GivenParameters) -> None:
    """Puts the fields that are parameters into `given`. Raises RequestError for an unknown field."""
    for name, value in request.items():
        if name in PARAMETERS:
            given.add(name, value, "a field")
        elif name != "body" and name not in _ROUTING and not _IMAGE_FIELD.fullmatch(name):
            raise unknown(name, "parameter", ["data", *PARAMETERS])


def check_form(request: Mapping[str, Any], headers: Mapping[str, Any]) -> None:
    """Raises RequestError where Content-Type and Content-Length say that TorchServe misread the body, or lost some."""
    kind, length = _media_type(headers), header(headers, "content-length")
    if kind == "application/x-www-form-urlencoded":
        raise RequestError(
            "the body came as application/x-www-form-urlencoded (as curl -d and --data-binary send it), which cannot "
            "carry an image; use curl -T photo.jpg URL, curl -F data=@photo.jpg URL, or name another Content-Type"
        )
    if not kind.startswith("multipart/"):
        return
    if "body" in request and bytes_of(request["body"])[:2] == b"--":
        raise RequestError(
            f"the Content-Type is {shown(header(headers, 'content-type'))}, which is not read as a form; "
            "'multipart/form-data; boundary=...' is, in small letters"
        )
    if not request:
        raise RequestError(
            "the multipart form has no field that can be read: it is cut off, its boundary is not the header's, or it "
            "is packed; send the image as its field 'data' (curl -F data=@photo.jpg URL)"
        )
    if re.fullmatch("[0-9]{1,18}", length):
        seen = sum(len(name) + len(bytes_of(value)) for name, value in request.items())
        lost = int(length) - seen
        if lost > _BYTES_AROUND_A_FIELD * (len(request) + 1):
            raise RequestError(
                f"{lost} bytes of the form are in none of its fields: of several fields with one name the server keeps "
                "the last; name the images data, data_1, data_2, ..."
            )


def bytes_of(value: Any) -> bytes | bytearray:
    """The value, where it is bytes; else no bytes."""
    return value if isinstance(value, bytes | bytearray) else b""


def header(headers: Mapping[str, Any], name: str) -> str:
    """A header's value by its name in lower case, whatever case the client wrote it in; "" where there is none.

    TorchServe puts the content types of a form's parts among them, as mappings; they are left out.
    """
    for key, value in headers.items():
        if isinstance(key, str) and key.lower() == name and isinstance(value, str):
            return value
    return ""


def traced(headers: Mapping[str, Any]) -> dict[str, str]:
    """The request's traceparent (W3C Trace Context), to be put on the answer, where it is one.

    X-Request-Id cannot go back: TorchServe puts one of its own on every answer.
    """
    value = header(headers, "traceparent")
    return {"traceparent": value} if _TRACEPARENT.fullmatch(value) else {}


def accepts_gzip(headers: Mapping[str, Any]) -> bool:
    """Whether Accept-Encoding allows gzip (RFC 9110, section 12.5.3)."""
    qualities: dict[str, float] = {}
    for part in header(headers, "accept-encoding").lower().split(","):
        coding, _, parameter = part.partition(";")
        match = _QUALITY.fullmatch(parameter)
        qualities[coding.strip()] = float(match[1]) if match else float(not parameter.strip())
    return qualities.get("gzip", qualities.get("x-gzip", qualities.get("*", 0.0))) > 0


def queue_seconds(headers: Mapping[str, Any], now: float) -> float | None:
    """Seconds since a proxy took the request, by its header `X-Request-Start: t=<seconds since 1970>`.

    None where there is no such header, or it cannot be right; a little before now is now, for clocks differ.
    """
    match = _REQUEST_START.fullmatch(header(headers, "x-request-start"))
    seconds = now - float(match[1]) if match else None
    if seconds is None or not -1.0 <= seconds <= LONGEST_QUEUE:
        return None
    return max(seconds, 0.0)
