"""A hostile request, what is expected of it, and its bytes on the wire.

The cases are sent by `tests/served/test_hostile.py` and, with their times, by `benchmarks.load.hostile`. "The service's
error" is the body {"error": {"code", "type", "message"}} of `handler/maskx_errors.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

REFUSED = "refused"
"""400 with the service's error, of one of the case's types."""
AS_PILLOW = "as Pillow decodes"
"""Where Pillow decodes the image, the offline network's answer, byte for byte; else 400 and the service's error."""
ANSWERED = "answered"
"""200 and the offline network's answer to the case's image: what is odd about the request does not matter."""
BY_SERVER = "by TorchServe"
"""TorchServe answers by itself with one of the case's statuses, in a form of its own, or hangs up; the proxy in front
gives the service's form."""
HUNG_UP = "client hangs up"
"""The client leaves before the end; nobody else may notice."""

PATH = "/predictions/maskx"
IMAGE_ERRORS = ("InvalidImage", "ImageTooLarge")
REQUEST_ERRORS = ("InvalidRequest",)
ANY_ERROR = (*REQUEST_ERRORS, *IMAGE_ERRORS, "TooManyImages")

Headers = Sequence[tuple[str | bytes, str | bytes]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request. `name` is unique.

    wire: what is sent over a connection of REST. entries: the map of the same request over gRPC, None where it has no
    counterpart. image: what AS_PILLOW and ANSWERED compare with. types: of a refusal. statuses: of BY_SERVER. large:
    left out with a stand-in that looks at every pixel of the original in TorchScript.
    """

    group: str
    name: str
    expect: str
    wire: bytes
    entries: Mapping[str, bytes] | None = None
    image: bytes = b""
    types: tuple[str, ...] = ANY_ERROR
    statuses: tuple[int, ...] = ()
    large: bool = False


def refused(
    group: str,
    name: str,
    wire: bytes,
    entries: Mapping[str, bytes] | None = None,
    *,
    types: tuple[str, ...] = REQUEST_ERRORS,
) -> Case:
    """A request that is REFUSED with an error of one of the types."""
    return Case(group=group, name=name, expect=REFUSED, wire=wire, entries=entries, types=types)


def http(
    body: bytes = b"", headers: Headers = (), *, method: str = "POST", path: str | bytes = PATH
) -> bytes:
    """A request of HTTP/1.1 in bytes; text goes as UTF-8, whatever may stand in a header."""
    lines = [method.encode() + b" " + _bytes(path) + b" HTTP/1.1", b"Host: 127.0.0.1"]
    named = {_bytes(name).lower() for name, _ in headers}
    if not named & {b"content-length", b"transfer-encoding"}:
        lines.append(b"Content-Length: %d" % len(body))
    if b"content-type" not in named:
        lines.append(b"Content-Type: application/octet-stream")
    lines += [_bytes(name) + b": " + _bytes(value) for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def form(
    *parts: tuple[str | bytes, bytes], boundary: str = "b0undary", end: bool = True
) -> tuple[bytes, list[tuple[str | bytes, str | bytes]]]:
    """Body and headers of a multipart form; each part is the text of its headers and its content."""
    pieces = [
        b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary.encode(), _bytes(head), content) for head, content in parts
    ]
    body = b"".join(pieces) + (b"--%s--\r\n" % boundary.encode() if end else b"")
    return body, [("Content-Type", f"multipart/form-data; boundary={boundary}")]


def field(name: str, filename: str = "") -> str:
    """The header of a part."""
    return f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
