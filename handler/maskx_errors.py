"""Every error that the handler answers with: its name, its status, its form.

The status is the one that REST answers with and that stands in the body over both protocols. What a caller did wrong is
always 400, so that a proxy can let 400 through and give TorchServe's own errors the same form.
handler/README.md holds the table for callers.
"""

import reprlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ErrorKind:
    """`name` is the `type` in the answer, `status` the `code`; `meaning` says in a line when it comes."""

    name: str
    status: int
    meaning: str


INVALID_REQUEST = ErrorKind(
    "InvalidRequest", 400, "The request or one of its parameters cannot be understood."
)
INVALID_IMAGE = ErrorKind("InvalidImage", 400, "The bytes are not an image that can be read.")
IMAGE_TOO_LARGE = ErrorKind(
    "ImageTooLarge", 400, "The image has more bytes, pixels or a longer side than allowed."
)
TOO_MANY_IMAGES = ErrorKind("TooManyImages", 400, "The request has more images than allowed.")
ANSWER_TOO_LARGE = ErrorKind("AnswerTooLarge", 400, "The answer would have more bytes than allowed.")
INTERNAL = ErrorKind("InternalError", 500, "The handler failed on this image; its log says why.")
OUT_OF_MEMORY = ErrorKind("OutOfMemory", 507, "The device has no memory for this image, even alone.")
RESTARTING = ErrorKind("Restarting", 503, "The device failed and the worker restarts; ask again.")

KINDS = (
    INVALID_REQUEST,
    INVALID_IMAGE,
    IMAGE_TOO_LARGE,
    TOO_MANY_IMAGES,
    ANSWER_TOO_LARGE,
    INTERNAL,
    OUT_OF_MEMORY,
    RESTARTING,
)


class MaskxError(ValueError):
    """An error for the caller: `kind`, and a `message` that names what was seen, what is allowed, what to do."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message

    def content(self) -> dict[str, Any]:
        """The answer: `{"error": {"code", "type", "message"}}`."""
        return {"error": {"code": self.kind.status, "type": self.kind.name, "message": self.message}}


class RequestError(MaskxError):
    """A request, or one image of it, that cannot be understood or is not allowed."""

    def __init__(self, message: str, kind: ErrorKind = INVALID_REQUEST) -> None:
        super().__init__(kind, message)


def shown(value: Any) -> str:
    """A value of the caller's for a message: on one line and at most 50 characters, whatever it is."""
    if isinstance(value, bytes | bytearray):
        value = bytes(value[:_SHOWN]).decode("utf-8", errors="replace")
    text = _SHORT.repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


_SHOWN = 50


class _Short(reprlib.Repr):
    """repr() that looks at the first few items and characters only."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxdict = 3
        self.maxother = 2 * _SHOWN

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[:_SHOWN]) if len(x) <= _SHOWN else repr(x[:_SHOWN])[:-1] + "..."

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 4 * _SHOWN else f"a number of {x.bit_length()} bits"


_SHORT = _Short()
