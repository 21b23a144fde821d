"""What can go wrong between a client and the server."""

from __future__ import annotations

import json


class ServerUnreachable(ConnectionError):
    """Nobody answers at the address; the message says what to do."""


class ServerRefused(ValueError):
    """The server answered with an error: `code` as HTTP has them, `kind` and the message in its words."""

    def __init__(self, code: int, kind: str, message: str) -> None:
        super().__init__(f"the server refused with {code} {kind}: {message}")
        self.code = code
        self.kind = kind
        self.message = message


def error_in(body: bytes) -> ServerRefused | None:
    """The error that a body holds, in the form of an answer or in TorchServe's own; None where it holds none."""
    try:
        content = json.loads(body)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    error = content.get("error", content)
    if not isinstance(error, dict) or not {"code", "type", "message"} <= error.keys():
        return None
    return ServerRefused(int(error["code"]), str(error["type"]), str(error["message"]))


def unreachable(address: str, reason: object) -> ServerUnreachable:
    """The error for an address where nobody answers."""
    return ServerUnreachable(
        f"no server answers at {address} ({reason}); start one with make serve, or name another address"
    )
