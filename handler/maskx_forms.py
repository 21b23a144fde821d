"""The fields of a request as TorchServe hands them over: which are images, which parameters, and what went wrong.

TorchServe gives the same mapping for a body (its one field is `body`), a multipart form, the query of
/models/maskx/invoke and the map of gRPC. Of several fields with one name it keeps the last, of a form that it cannot
read nothing. Knows nothing else of the server; the standard library is all it needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from maskx_errors import RequestError, shown
from maskx_parameters import PARAMETERS, Given, unknown

_IMAGE_FIELD = re.compile(r"data(?:_?([0-9]{1,6}))?")

_ROUTING = ("model_name", "model_version")
"""What the query of /invocations tells TorchServe, which hands it on."""

_BYTES_AROUND_A_FIELD = 2048
"""More than a boundary, a name, a file name and a content type ever take."""


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


def take_parameters(request: Mapping[str, Any], given: Given) -> None:
    """Puts the fields that are parameters into `given`. Raises RequestError for one that is nothing known."""
    for name, value in request.items():
        if name in PARAMETERS:
            given.add(name, value, "a field")
        elif name != "body" and name not in _ROUTING and not _IMAGE_FIELD.fullmatch(name):
            raise unknown(name, "parameter", ["data", *PARAMETERS])


def check_form(request: Mapping[str, Any], content_type: str, length: str) -> None:
    """Raises RequestError where the content type says that TorchServe misread the body, or lost a part of it.

    Args:
        request: the fields.
        content_type: the header's value, "" where there was none.
        length: that of Content-Length, in digits; anything else is not looked at.
    """
    kind = content_type.split(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        raise RequestError(
            "the body came as application/x-www-form-urlencoded (as curl -d and --data-binary send it), which cannot "
            "carry an image; use curl -T photo.jpg URL, curl -F data=@photo.jpg URL, or name another Content-Type"
        )
    if not kind.startswith("multipart/"):
        return
    if "body" in request and bytes_of(request["body"])[:2] == b"--":
        raise RequestError(
            f"the Content-Type is {shown(content_type)}, which is not read as a form; "
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
    """The value, where it is bytes; else none."""
    return value if isinstance(value, bytes | bytearray) else b""
