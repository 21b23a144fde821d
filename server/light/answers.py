"""What a request is answered with: what a worker made of it, or a refusal of the front's own; and how that went."""

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Refusal(Exception):
    """What is answered in place of a prediction, in the form and by the names that the proxy has for it.

    `retry_after`: seconds after which to ask again, None where that is of no use.
    """

    def __init__(self, status: int, kind: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.retry_after = retry_after

    def body(self) -> bytes:
        """`{"error": {"code", "type", "message"}}`, as compact as the handler's."""
        content = {"error": {"code": self.status, "type": self.kind, "message": self.message}}
        return json.dumps(content, separators=(",", ":")).encode()


REFUSALS = (
    (404, "NotFound: There is no such path, model or version."),
    (405, "MethodNotAllowed: This path does not take this method."),
    (408, "BadRequest: The request came too slowly."),
    (413, "RequestTooLarge: The request has more bytes than allowed."),
    (417, "BadRequest: This expectation is not known."),
    (431, "HeadersTooLarge: A header, or all of them, are too long."),
    (501, "NotImplemented: This Transfer-Encoding is not known."),
    (503, "Busy: The queue is full or the server is ending; send it again later (Retry-After)."),
    (503, "WorkerDied: Workers died with this request."),
    (504, "Timeout: There was no answer in time; send it again later (Retry-After)."),
)
"""Statuses of the front's own refusals of a prediction, and what they mean, as /openapi.json tells them."""


def ending() -> Refusal:
    """What is told to who comes too late."""
    return Refusal(503, "Busy", "the server, or this version, is ending; send it again later", retry_after=1)


class Sample(NamedTuple):
    """A value of a metric, and the values of its own labels."""

    name: str
    value: float
    labels: tuple[str, ...]


PARTS = {
    "decode": "maskx_decode_seconds",
    "network": "maskx_forward_seconds",
    "encode": "maskx_encode_seconds",
}
"""What a worker does with a batch, and the sample that says for how many seconds."""


class Course(NamedTuple):
    """How a request went; times are those of time.monotonic().

    asked: when its batch was given to the worker that answered. samples: the worker's, of the whole batch.
    deaths: workers that died with it before.
    """

    arrived: float
    asked: float
    version: str
    batch_size: int
    samples: Sequence[Sample]
    deaths: int

    def parts(self) -> Iterator[tuple[str, float, float]]:
        """Name, begin and end of each part that the request went through, in order.

        The worker says how long the parts of a batch took, not when they were: they are laid one after the other.
        """
        yield "queue", self.arrived, self.asked
        seconds = {one.name: one.value for one in self.samples}
        since = self.asked
        for name, sample in PARTS.items():
            if sample in seconds:
                yield name, since, since + seconds[sample]
                since += seconds[sample]


class Answered(NamedTuple):
    """What a worker answered to one request."""

    status: int
    content_type: str
    kind: str
    headers: dict[str, str]
    body: bytes
    course: Course | None = None
    """None of the front's own answers."""
