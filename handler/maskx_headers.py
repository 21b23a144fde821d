"""What of a request's HTTP headers the handler heeds besides parameters, and what it puts on the answer.

A header of the answer with a line break, or other than ASCII, would end the worker; so what comes from the client goes
back only if it has the form that is expected. Knows nothing of the server; the standard library is all it needs.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from typing import Any

LEAST_COMPRESSED = 1024
"""Bytes from which compressing an answer is worth its time."""

COMPRESSION_LEVEL = 1

LONGEST_QUEUE = 3600.0
"""Seconds in a queue; a header that says more is wrong."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_QUALITY = re.compile(r"\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*")
_REQUEST_START = re.compile(r"t=([0-9]{1,12}(?:\.[0-9]{1,9})?)")


def header(headers: Mapping[str, Any], name: str) -> str:
    """A header's value by its name in lower case, whatever case the client wrote it in; '' where there is none."""
    for given, value in headers.items():
        if given.lower() == name and isinstance(value, str):
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


def compressed(body: bytes) -> bytes:
    """The body in gzip's format, the same bytes for the same body."""
    return gzip.compress(body, COMPRESSION_LEVEL, mtime=0)


def queue_seconds(headers: Mapping[str, Any], now: float) -> float | None:
    """Seconds since a proxy took the request, by its header `X-Request-Start: t=<seconds since 1970>`.

    None where there is no such header, or it cannot be right; a little before now is now, for clocks differ.
    """
    match = _REQUEST_START.fullmatch(header(headers, "x-request-start"))
    seconds = now - float(match[1]) if match else None
    if seconds is None or not -1.0 <= seconds <= LONGEST_QUEUE:
        return None
    return max(seconds, 0.0)
