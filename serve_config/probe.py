"""Whether the model really answers: TorchServe's /ping and KServe's readiness say yes while it is still loading."""

from __future__ import annotations

import http.client
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from serve_config.processes import Ports, Running

HOST = "127.0.0.1"
KEY_FILE = "key_file.json"
"""TorchServe writes its tokens there, in the folder it runs in."""


def not_ready_because(state: Path, running: Running, *, model: str, timeout: float = 30.0) -> str:
    """Why the server cannot answer, or '' where a worker is READY and a real prediction was answered."""
    try:
        status, body = _request(
            running.ports.management, "GET", f"/models/{model}", _key(state, running, "management"), timeout
        )
        if status != 200:
            return f"the management API answers {status}: {body[:200].decode(errors='replace')}"
        workers = [worker["status"] for version in json.loads(body) for worker in version["workers"]]
        if "READY" not in workers:
            return f"no worker is ready yet ({', '.join(workers) or 'none started'})"
        status, body = _request(
            running.ports.inference,
            "POST",
            f"/predictions/{model}",
            _key(state, running, "inference"),
            timeout,
            tiny_png(),
        )
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a key file half written
        return f"it does not answer: {type(error).__name__}: {error}"
    if status != 200 or not _is_answer(body):
        return f"a prediction is answered with {status}: {body[:200].decode(errors='replace')}"
    return ""


def tiny_png() -> bytes:
    """A grey image of 32 x 32 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()


def tokens(state: Path) -> dict[str, str]:
    """The tokens of a server that asks for them: "inference", "management", "API" -> key."""
    content: dict[str, Any] = json.loads((state / KEY_FILE).read_text())
    return {name: str(entry["key"]) for name, entry in content.items()}


def address(ports: Ports) -> str:
    """Base URL of the inference API."""
    return f"http://{HOST}:{ports.inference}"


def _key(state: Path, running: Running, name: str) -> str:
    return tokens(state)[name] if running.tokens else ""


def _is_answer(body: bytes) -> bool:
    try:
        return "detections" in json.loads(body)
    except ValueError:
        return False


def _request(
    port: int, method: str, path: str, key: str, timeout: float, body: bytes | None = None
) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/octet-stream"} if body is not None else {}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
