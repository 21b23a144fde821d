"""Whether the model really answers: TorchServe's /ping and KServe's readiness say yes while it is still loading."""

from __future__ import annotations

import http.client
import io
import json
from pathlib import Path

from PIL import Image

from server.management import Management, ask, tokens
from server.ports import HOST, Ports
from server.processes import Running


def not_ready_because(state: Path, running: Running, *, model: str, timeout: float = 30.0) -> str:
    """Why the server cannot answer, or '' where a worker is READY and a real prediction was answered."""
    try:
        workers = Management(state, running, timeout=timeout).default().workers
        if not any(worker.lives() for worker in workers):
            return f"no worker is ready ({', '.join(one.trouble() for one in workers) or 'none started'})"
        key = tokens(state)["inference"] if running.tokens else ""
        status, body = ask(
            running.ports.inference,
            "POST",
            f"/predictions/{model}",
            key=key,
            timeout=timeout,
            body=tiny_png(),
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


def address(ports: Ports) -> str:
    """Base URL of the inference API."""
    return f"http://{HOST}:{ports.inference}"


def _is_answer(body: bytes) -> bool:
    try:
        return "detections" in json.loads(body)
    except ValueError:
        return False
