"""One attempt over REST, with httpx."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx

from client.errors import ServerRefused, TimedOut, error_in, lost, refused, unreachable
from client.retry import seconds_of
from client.transport import CONNECT_SECONDS, Parameters, Target, field_names


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

    async def send(self, images: Sequence[bytes], parameters: Parameters, seconds: float) -> bytes:
        """As `Transport.send`. One image without parameters is the raw body, all else a form."""
        url = self._target.prediction_url
        try:
            async with asyncio.timeout(seconds):
                if len(images) == 1 and not parameters:
                    octets = {"Content-Type": "application/octet-stream"}
                    response = await self._client.post(url, content=images[0], headers=octets)
                else:
                    files = [
                        (name, ("image", image, "application/octet-stream"))
                        for name, image in zip(field_names(len(images)), images, strict=True)
                    ]
                    response = await self._client.post(url, data=dict(parameters), files=files)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise unreachable(self._target.url, error or type(error).__name__) from error
        except httpx.HTTPError as error:
            raise lost(self._target.url, error or type(error).__name__) from error
        except TimeoutError as error:
            raise TimedOut(f"no answer from {self._target.url} within {seconds:.3g} s") from error
        if response.status_code == 200:
            return response.content
        raise _refusal(response)

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._client.aclose()


def _refusal(response: httpx.Response) -> ServerRefused:
    """The error of an answer that is none, also where its body is empty or HTML of something in between."""
    retry_after = seconds_of(response.headers.get("retry-after"))
    status = response.status_code
    found = error_in(response.content, retry_after=retry_after)
    if found is not None:
        return found
    reason = httpx.codes.get_reason_phrase(status) or "no reason given"
    text = response.content[:300].decode(errors="replace").strip()
    plain = text and "html" not in response.headers.get("content-type", "")
    return refused(status, "HTTP", text if plain else reason, retry_after=retry_after)
