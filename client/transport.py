"""One attempt over REST or gRPC: the bytes of images and parameters there, the answer's bytes back; and REST."""

import asyncio
import os
import ssl
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from .errors import ServerRefused, TimedOut, error_in, lost, refused, unreachable
from .retry import seconds_of

DEFAULT_URL = "http://127.0.0.1:8080"
SCHEMES = ("http", "https", "grpc", "grpcs")
TOKEN_VARIABLE = "MASKX_TOKEN"
CONNECT_SECONDS = 10.0
"""A machine that does not even take the connection within so many seconds is not there."""
CONNECTING, SENDING, ANSWERED = (
    "connection.connect_tcp.started",
    "http11.send_request_headers.started",
    "http11.receive_response_headers.complete",
)
"""What httpx's trace calls the stages of a request."""

Fields = Mapping[str, str]
"""The parameters of a request as they travel: text by their names."""


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
        """What the server's certificate is checked with over HTTPS. Raises ValueError: `ca` holds no certificates."""
        try:
            return ssl.create_default_context(cafile=self.ca)
        except (ssl.SSLError, OSError) as error:
            raise ValueError(f"{self.ca} holds no certificates in PEM form: {error}") from error


class Transport(Protocol):
    """A way to the server; may be used by many tasks at once, on the loop that made it."""

    async def send(self, images: Sequence[bytes], fields: Fields, seconds: float) -> bytes:
        """The answer's body to one attempt.

        Raises:
            ServerRefused: the server answered with an error about the request as a whole.
            ServerUnreachable: nobody answered, or the connection was lost.
            TimedOut: the answer was not whole after so many seconds.
        """

    async def aclose(self) -> None:
        """Closes all connections."""


def token_or_environment(token: str | None) -> str:
    """The token given, or the environment's where it is None; empty where neither is set."""
    return os.environ.get(TOKEN_VARIABLE, "") if token is None else token


def field_names(images: int) -> list[str]:
    """The names under which images travel in a form or a gRPC map: data, data_1, data_2, ..."""
    return ["data", *(f"data_{i}" for i in range(1, images))]


class RestTransport:
    """POST /predictions/<model>. Connections are kept and used again; proxies of the environment are not used.

    `connections`: at most so many at a time.
    """

    def __init__(self, target: Target, *, connections: int) -> None:
        self._target = target
        headers = {"Authorization": f"Bearer {target.token}"} if target.token else {}
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),  # all else is bounded in send()
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            verify=target.tls() if target.scheme == "https" else False,
            trust_env=False,
        )

    async def send(self, images: Sequence[bytes], fields: Fields, seconds: float) -> bytes:
        """As `Transport.send`. One image without parameters is the raw body, all else a form."""
        url = self._target.prediction_url
        try:
            async with asyncio.timeout(seconds):
                if len(images) == 1 and not fields:
                    octets = {"Content-Type": "application/octet-stream"}
                    response = await self._post(url, content=images[0], headers=octets)
                else:
                    files = [
                        (name, ("image", image, "application/octet-stream"))
                        for name, image in zip(field_names(len(images)), images, strict=True)
                    ]
                    response = await self._post(url, data=dict(fields), files=files)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise unreachable(self._target.url, error or type(error).__name__) from error
        except httpx.HTTPError as error:
            raise lost(self._target.url, error or type(error).__name__) from error
        except TimeoutError as error:
            raise TimedOut(f"no answer from {self._target.url} within {seconds:.3g} s") from error
        if response.status_code == 200:
            return response.content
        raise _refusal(response)

    async def _post(self, url: str, **content: Any) -> httpx.Response:
        """The response, over a new connection where a kept one was found closed: a server may close it at any time.

        That is no attempt of its own; a request that a server closed a new connection on is.
        """
        while True:
            events: set[str] = set()

            async def note(event: str, _: object, seen: set[str] = events) -> None:
                seen.add(event)

            try:
                return await self._client.post(url, extensions={"trace": note}, **content)
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                if SENDING not in events or events & {CONNECTING, ANSWERED}:
                    raise

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._client.aclose()


def _refusal(response: httpx.Response) -> ServerRefused:
    """The error that a response means, also where its body is empty or HTML of something in between."""
    retry_after = seconds_of(response.headers.get("retry-after"))
    status = response.status_code
    found = error_in(response.content, retry_after=retry_after)
    if found is not None:
        return found
    reason = httpx.codes.get_reason_phrase(status) or "no reason given"
    text = response.content[:300].decode(errors="replace").strip()
    plain = text and "html" not in response.headers.get("content-type", "")
    return refused(status, "HTTP", text if plain else reason, retry_after=retry_after)
