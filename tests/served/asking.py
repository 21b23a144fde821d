"""One attempt at a prediction, over REST or gRPC, and the answer's bytes."""

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from client import Client, Retries


class Once(NamedTuple):
    """A server as a caller sees it that never asks again, and has a connection of its own for every request."""

    url: str
    token: str = ""

    def predict(self, image: bytes, parameters: Mapping[str, object] | None = None) -> bytes:
        """The answer's body; raises as `Client.raw`."""
        fields: Any = {name: str(value) for name, value in (parameters or {}).items()}
        with Client(self.url, token=self.token, timeout=60, retries=Retries(attempts=1)) as client:
            return client.raw([image], fields)


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
