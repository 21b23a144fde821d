"""One attempt over REST or gRPC: the bytes of images and parameters there, the answer's bytes back."""

from __future__ import annotations

import os
import ssl
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

DEFAULT_URL = "http://127.0.0.1:8080"
SCHEMES = ("http", "https", "grpc", "grpcs")
TOKEN_VARIABLE = "MASKX_TOKEN"
CONNECT_SECONDS = 10.0
"""A machine that does not even take the connection within so many seconds is not there."""

Parameters = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Which model of which server, and how it is reached.

    `version` is empty for the model's default one, `token` for a server that asks for none, `ca` is a file with the
    certificates (PEM) that the server's is checked against, None for those of this machine.
    """

    url: str
    model: str = "maskx"
    version: str = ""
    token: str = ""
    ca: Path | None = None

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in SCHEMES or not parts.hostname or parts.username is not None:
            raise ValueError(
                f"the address is {self.url!r}; expected one such as {DEFAULT_URL}, https://host:8443, "
                "grpc://127.0.0.1:7070 or grpcs://host:7443"
            )
        if self.grpc and (parts.port is None or parts.path.strip("/")):
            raise ValueError(f"the address is {self.url!r}; over gRPC it is {self.scheme}://host:port")
        if not (self.token.isascii() and self.token.isprintable()):
            raise ValueError("the token has characters that no header can carry; only printable ASCII can")
        if self.ca is not None and not self.ca.is_file():
            raise ValueError(f"there is no file {self.ca} with the certificates of the server's authority")
        if self.ca is not None and self.scheme not in ("https", "grpcs"):
            raise ValueError(f"{self.url} is not encrypted; certificates are for https:// and grpcs://")

    @property
    def scheme(self) -> str:
        return urllib.parse.urlsplit(self.url).scheme

    @property
    def grpc(self) -> bool:
        """Whether it is reached over gRPC, not REST."""
        return self.scheme.startswith("grpc")

    @property
    def authority(self) -> str:
        """host:port as in the URL."""
        return urllib.parse.urlsplit(self.url).netloc

    @property
    def prediction_url(self) -> str:
        """Where images are posted to over REST."""
        parts = [self.url.rstrip("/"), "predictions", urllib.parse.quote(self.model, safe="")]
        return "/".join(parts + ([urllib.parse.quote(self.version, safe="")] if self.version else []))

    def tls(self) -> ssl.SSLContext:
        """What the server's certificate is checked with over HTTPS.

        Raises:
            ValueError: `ca` holds no certificates.
        """
        try:
            return ssl.create_default_context(cafile=self.ca)
        except (ssl.SSLError, OSError) as error:
            raise ValueError(f"{self.ca} holds no certificates in PEM form: {error}") from error


class Transport(Protocol):
    """A way to the server; may be used by many tasks at once, on the loop that made it."""

    async def send(self, images: Sequence[bytes], parameters: Parameters, seconds: float) -> bytes:
        """The answer's body to one attempt.

        Raises:
            ServerRefused: the server answered with an error about the request as a whole.
            ServerUnreachable: nobody answered, or the connection was lost.
            TimedOut: the answer was not whole after so many seconds.
        """

    async def aclose(self) -> None:
        """Closes all connections."""


def token_or_environment(token: str | None) -> str:
    """The token given, or the environment's where it is None; empty where there is none."""
    return os.environ.get(TOKEN_VARIABLE, "") if token is None else token


def field_names(images: int) -> list[str]:
    """The names under which images travel in a form or a gRPC map: data, data_1, data_2, ..."""
    return ["data", *(f"data_{i}" for i in range(1, images))]
