"""What can go wrong between a client and the server, and whether asking again can help."""

import json

START = "make serve" if __package__ == "client" else "maskx serve"
"""What starts a server, in a clone and where the wheel is installed."""

TRANSIENT_CODES = frozenset({429, 502, 503, 504})
"""Full queue, rate limit, a proxy without its server, an answer too late for the proxy: states that pass."""

WORKER_DIED = "worker died"
"""TorchServe's 500 or 507 to all requests of a batch whose worker ended; a new worker is started. A prediction changes
nothing on the server, so asking again is safe. The proxy of deploy/ names it WorkerDied."""


class ServerUnreachable(ConnectionError):
    """Nobody answers at the address, or the connection broke before the whole answer was there."""

    retry_after: float | None = None
    transient = True


class TimedOut(TimeoutError):
    """No answer within the seconds that one attempt, or all of them together, may take."""

    retry_after: float | None = None
    transient = True


class ServerRefused(ValueError):
    """The server answered with an error: `code` as HTTP has them, `kind` and the message in its words.

    `retry_after`: seconds after which the server wants to be asked again; None where it did not say.
    """

    def __init__(self, code: int, kind: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"the server refused with {code} {kind}: {message}")
        self.code = code
        self.kind = kind
        self.message = message
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        """Whether the same request may be answered later."""
        died = self.kind == "WorkerDied" or WORKER_DIED in self.message.lower()
        return self.code in TRANSIENT_CODES or (self.code in (500, 507) and died)


class InvalidRequest(ServerRefused):
    """A parameter or the form of the request is wrong; the message names it and what is allowed."""


class InvalidImage(ServerRefused):
    """The image cannot be read, or is larger than the server takes."""


class NotAuthorized(ServerRefused):
    """The token is missing, wrong or expired."""


class AnswerTooLarge(ServerRefused):
    """The answer would not fit; ask for fewer detections, a higher threshold or no masks."""


class ServerBusy(ServerRefused):
    """The server cannot answer now (429, 502, 503, 504)."""


class ServerFailed(ServerRefused):
    """The server could not do it, though nothing is wrong with the request (5xx)."""


CLASSES: dict[str, type[ServerRefused]] = {
    "InvalidRequest": InvalidRequest,
    "TooManyImages": InvalidRequest,
    "InvalidImage": InvalidImage,
    "ImageTooLarge": InvalidImage,
    "AnswerTooLarge": AnswerTooLarge,
    "InvalidKeyException": NotAuthorized,  # TorchServe's own, with status 400
}
"""The exception for the `type` of an error; what is not here goes by its code."""


def refused(code: int, kind: str, message: str, *, retry_after: float | None = None) -> ServerRefused:
    """The exception for an error of the server, of the class that tells what is to be done."""
    by_code = ServerRefused
    if code in (401, 403):
        by_code = NotAuthorized
    elif code == 413:
        by_code = InvalidImage
    elif code in (400, 415, 422):
        by_code = InvalidRequest
    elif code in TRANSIENT_CODES:
        by_code = ServerBusy
    elif code >= 500:
        by_code = ServerFailed
    return CLASSES.get(kind, by_code)(code, kind, message, retry_after=retry_after)


def error_of(content: object, *, retry_after: float | None = None) -> ServerRefused | None:
    """The error that parsed JSON is, in the form of an answer or in TorchServe's own; None where it is not one."""
    if not isinstance(content, dict):
        return None
    error = content.get("error", content)
    if not isinstance(error, dict) or not {"code", "type", "message"} <= error.keys():
        return None
    try:
        code = int(error["code"])
    except (TypeError, ValueError):
        return None
    return refused(code, str(error["type"]), str(error["message"]), retry_after=retry_after)


def error_in(body: bytes, *, retry_after: float | None = None) -> ServerRefused | None:
    """The error that a body holds, as `error_of`; None where it holds no error."""
    try:
        return error_of(json.loads(body), retry_after=retry_after)
    except (ValueError, RecursionError):
        return None


def unreachable(address: str, reason: object) -> ServerUnreachable:
    """The error for an address where nobody answers."""
    return ServerUnreachable(
        f"no server answers at {address} ({reason}); start one with {START}, or name another address"
    )


def lost(address: str, reason: object) -> ServerUnreachable:
    """The error for a connection that broke before the whole answer was there."""
    return ServerUnreachable(f"the connection to {address} was lost before the answer was whole ({reason})")
