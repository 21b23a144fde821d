"""One request as the server received it -> images and wishes (border 5), whatever road it came by.

A request is a mapping of names to values, and its headers:

* `body`: what a REST client posted: an image, or JSON (maskx_envelopes), perhaps packed with gzip;
* `data`, `data_1`, ...: images, or the same JSON, as multipart fields or as entries of the gRPC map;
* parameters beside them, as fields, entries or headers, by the same names as in JSON.

Knows nothing of the server; the standard library is all it needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskx_body import checked_image, decoded_base64, json_object, looks_like_json, refuse_address, unpacked
from maskx_categories import CategoryIndex
from maskx_envelopes import Envelope, ImageLimits, Item, open_envelope, read_item, require_few
from maskx_errors import RequestError, shown
from maskx_forms import check_form, images_in, take_parameters
from maskx_parameters import (
    MASK_FORMATS,
    MAX_DETECTIONS,
    OUTPUTS,
    PARAMETERS,
    Given,
    Wishes,
    given_in_headers,
)

__all__ = [
    "MASK_FORMATS",
    "MAX_DETECTIONS",
    "OUTPUTS",
    "PARAMETERS",
    "Envelope",
    "ImageRequest",
    "Request",
    "RequestError",
    "Wishes",
    "parse_request",
]

_SINGLE = Envelope(kind="single")


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One image, still encoded, and what is wished for it."""

    image: bytes
    wishes: Wishes


@dataclass(frozen=True, kw_only=True)
class Request:
    """The images of one request, in order, at least one; where one of several cannot be understood, its error."""

    images: tuple[ImageRequest | RequestError, ...]
    envelope: Envelope


def parse_request(
    request: Mapping[str, Any],
    headers: Mapping[str, Any],
    defaults: Wishes,
    categories: CategoryIndex,
    *,
    max_images: int,
    max_image_bytes: int,
) -> Request:
    """The images and the wishes of one request.

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
    check_form(request, _header(headers, "content-type"), _header(headers, "content-length"))
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
    if list(fields) in (["body"], ["data"]):
        name, value = next(iter(fields.items()))
        envelope, items = _one_field(
            value, "the body" if name == "body" else "the field 'data'", given, limits, _says_json(headers)
        )
    else:
        require_few(len(fields), limits)
        envelope = Envelope(kind="several")
        items = [_numbered_field(value, f"the field {shown(name)}", limits) for name, value in fields.items()]
    wishes = given.wishes(defaults, categories)
    _refuse_overlay(wishes, envelope)
    images = tuple(_image_request(item, wishes, envelope, categories) for item in items)
    return Request(images=images, envelope=envelope)


def _one_field(
    value: Any, what: str, given: Given, limits: ImageLimits, says_json: bool
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
    return _SINGLE, [Item(image=_raw_image(value, what, limits), given=Given())]


def _numbered_field(value: Any, what: str, limits: ImageLimits) -> Item | RequestError:
    """One of several image fields: an image, or JSON with one."""
    try:
        if isinstance(value, str | bytes | bytearray) and looks_like_json(value):
            value = json_object(value, what)
        if isinstance(value, dict):
            return read_item(value, what, limits)
        return Item(image=_raw_image(value, what, limits), given=Given())
    except RequestError as error:
        return error


def _raw_image(value: Any, what: str, limits: ImageLimits) -> bytes:
    """The bytes of an image that came as they are, or as a data URL."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise RequestError(
            f"{what} came as text ({shown(value)}), not as bytes; send it as image/jpeg, image/png or "
            "application/octet-stream, or in base64 as JSON"
        )
    start = bytes(value[:64]).decode("latin-1")
    if start[:5].lower() == "data:":
        return decoded_base64(bytes(value).decode("latin-1"), what, max_bytes=limits.max_image_bytes)
    refuse_address(start, what)
    return checked_image(bytes(value), what, max_bytes=limits.max_image_bytes)


def _image_request(
    item: Item | RequestError, wishes: Wishes, envelope: Envelope, categories: CategoryIndex
) -> ImageRequest | RequestError:
    if isinstance(item, RequestError):
        return item
    try:
        own = item.given.wishes(wishes, categories)
        _refuse_overlay(own, envelope)
    except RequestError as error:
        return error
    return ImageRequest(image=item.image, wishes=own)


def _refuse_overlay(wishes: Wishes, envelope: Envelope) -> None:
    if wishes.output == "overlay" and envelope.kind != "single":
        raise RequestError(
            "output is 'overlay', which answers with a picture: it needs exactly one image, sent as the body, as the "
            'field \'data\' or as {"image": "<base64>"}'
        )


def _unpacked_body(value: Any, headers: Mapping[str, Any], limits: ImageLimits) -> Any:
    encoding = _header(headers, "content-encoding")
    if not encoding or not isinstance(value, bytes | bytearray):
        return value
    in_base64 = limits.max_image_bytes // 3 * 4 + 65_536
    return unpacked(bytes(value), encoding, max_bytes=in_base64)


def _says_json(headers: Mapping[str, Any]) -> bool:
    kind = _header(headers, "content-type").split(";")[0].strip().lower()
    return re.fullmatch(r"application/([a-z0-9.-]{1,100}\+)?json", kind) is not None


def _header(headers: Mapping[str, Any], name: str) -> str:
    """A header's value, "" where there is none; parts' content types, which are no text, are left out."""
    for key, value in headers.items():
        if isinstance(key, str) and key.lower() == name and isinstance(value, str):
            return value
    return ""
