"""Requests as the tests of their parsing make them, and what becomes of them."""

import base64
import json
import re
from typing import Any

import pytest

from maskx_errors import INVALID_REQUEST, RequestError
from maskx_parameters import CategoryIndex, Parameters
from maskx_request import ImageRequest, Request, parse_request
from tests.handler.test_answer import CATEGORIES

DEFAULTS = Parameters(score_threshold=0.5, max_detections=100)
IMAGE = b"\x89PNG\r\n\x1a\n and so on"
SECOND = b"\xff\xd8\xff and so on"
TEXT = base64.b64encode(IMAGE).decode()
TEXT_2 = base64.b64encode(SECOND).decode()
LONG_TEXT = base64.encodebytes(IMAGE).decode()
INPUT = {"name": "a", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
GZIP = {"Content-Encoding": "gzip"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def parsed(request: dict[str, Any], headers: dict[str, Any] | None = None, **limits: int) -> Request:
    allowed = {"max_images": 4, "max_image_bytes": 1000} | limits
    return parse_request(request, headers or {}, DEFAULTS, CategoryIndex(CATEGORIES), **allowed)


def typed(kind: str) -> dict[str, str]:
    return {"Content-Type": kind}


def body(content: Any) -> dict[str, Any]:
    return {"body": bytearray(json.dumps(content).encode())}


def refused(request: dict[str, Any], headers: dict[str, Any] | None = None, **limits: int) -> RequestError:
    with pytest.raises(RequestError) as raised:
        parsed(request, headers, **limits)
    return raised.value


def refused_with(message: str, request: dict[str, Any], headers: dict[str, Any] | None = None) -> None:
    error = refused(request, headers)
    assert error.kind is INVALID_REQUEST and re.search(message, error.message)


def only(request: Request) -> ImageRequest:
    (image,) = request.images
    assert isinstance(image, ImageRequest), image
    return image


def images_of(request: Request) -> list[bytes]:
    return [one.image for one in request.images if isinstance(one, ImageRequest)]
