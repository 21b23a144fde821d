"""The served model over REST, plainly: one attempt, and the answer's bytes. `Client` asks again and returns values."""

from __future__ import annotations

import http.client
import urllib.parse
import uuid
from collections.abc import Mapping

from client.errors import error_in, refused, unreachable
from client.transport import DEFAULT_URL


class RestClient:
    """Predictions of one model on one server; holds no connection, so it may be shared by threads.

    Args:
        url: base URL of TorchServe's inference API.
        model: the model's name on the server.
        token: for a server that asks for one.
        timeout: seconds that an answer may take.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, model: str = "maskx", token: str = "", timeout: float = 120.0
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the URL is {url!r}; expected one such as {DEFAULT_URL}")
        self.url = url.rstrip("/")
        self._https = parts.scheme == "https"
        self._host = parts.netloc
        self._path = f"{parts.path.rstrip('/')}/predictions/{urllib.parse.quote(model, safe='')}"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = timeout

    def predict(self, image: bytes, parameters: Mapping[str, object] | None = None) -> bytes:
        """The answer's body for an encoded image.

        Args:
            image: JPEG, PNG, ...
            parameters: those of `Wishes` (client/core.py) and `output`; None or none for the server's defaults.

        Raises:
            ServerRefused: the server answered with an error.
            ServerUnreachable: nobody answered.
        """
        if parameters:
            content_type, body = multipart(image, parameters)
        else:
            content_type, body = "application/octet-stream", image
        status, answer = self._post(body, {**self._headers, "Content-Type": content_type})
        if status != 200:
            text = answer[:300].decode(errors="replace") or http.client.responses.get(
                status, "no reason given"
            )
            raise error_in(answer) or refused(status, "HTTP", text)
        return answer

    def _post(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self._https else http.client.HTTPConnection
        connection = kind(self._host, timeout=self._timeout)
        try:
            connection.request("POST", self._path, body=body, headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(self.url, error or type(error).__name__) from error
        finally:
            connection.close()


def multipart(image: bytes, parameters: Mapping[str, object]) -> tuple[str, bytes]:
    """Content type and body of a form with the image in the field `data` and the parameters beside it."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in parameters.items()
    ]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="data"; filename="image"\r\n'
    head += "Content-Type: application/octet-stream\r\n\r\n"
    body = b"".join([*parts, head.encode(), image, f"\r\n--{boundary}--\r\n".encode()])
    return f"multipart/form-data; boundary={boundary}", body
