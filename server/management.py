"""TorchServe's management API, as far as it is needed: who answers, what waits, and versions beside each other.

The light server has the same (server/light/operators.py).

Measured with TorchServe 0.12: this API is answered by Java alone, within milliseconds under any load. It calls a worker
that was stopped (SIGSTOP) READY, so its process is looked at too. The describe call alone goes through the worker; it
stands in the same queue as every request, so under load it takes as long as they do (3 s with 8 clients whose
requests take 0.4 s, 20 s with 60).
"""

import contextlib
import http.client
import io
import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psutil
from PIL import Image

from .processes import HOST, Running
from .settings import MODEL

KEY_FILE = "key_file.json"
"""TorchServe writes its tokens there, in the folder it runs in."""
ANSWERED = ("ts_inference_latency_microseconds", "PredictionTime", "maskx_requests_total")
"""Metrics that move when a worker answers, and with nothing else: TorchServe's counter with an answer over HTTP, the
two others, which the worker reports, over gRPC too."""
HALTED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A process of the handler, and what TorchServe says of it: READY, UNLOADING, ..."""

    pid: int
    status: str

    def lives(self) -> bool:
        """READY, and its process neither dead nor stopped."""
        return self.trouble() == ""

    def trouble(self) -> str:
        """What keeps it from answering, as TorchServe or the system calls it; '' where nothing is known."""
        if self.status != "READY":
            return self.status
        try:
            state = psutil.Process(self.pid).status()
        except psutil.NoSuchProcess:
            return "dead"
        return str(state) if state in HALTED else ""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of the model: its workers, the requests that wait for them, and how they are batched."""

    name: str
    workers: tuple[Worker, ...]
    pending: int
    batch_size: int
    batch_delay: int


class Refused(ValueError):
    """What TorchServe answered in place of doing it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the server answers {status}: {message}")
        self.status = status


class Management:
    """The management API of one running server.

    Every call raises OSError or http.client.HTTPException where it does not answer.
    """

    def __init__(self, state: Path, running: Running, *, timeout: float = 10.0) -> None:
        self._state = state
        self._running = running
        self._timeout = timeout

    def default(self) -> Version:
        """The version that answers where none is named. Raises Refused."""
        return _version(self._json("GET", f"/models/{MODEL}")[0])

    def version(self, name: str) -> Version:
        """What TorchServe says of this version. Raises Refused where it is not registered."""
        return _version(self._json("GET", f"/models/{MODEL}/{quote(name)}")[0])

    def versions(self) -> list[Version]:
        """All that are registered, by name. Raises Refused."""
        found = [_version(content) for content in self._json("GET", f"/models/{MODEL}/all")]
        return sorted(found, key=lambda version: version.name)

    def worker_answers(self, name: str, *, timeout: float) -> None:
        """Returns when a worker of this version has answered the describe call. Raises Refused or TimeoutError."""
        self._json("GET", f"/models/{MODEL}/{quote(name)}?customized=true", timeout=timeout)

    def answered(self) -> str:
        """A text that has changed where a worker has answered a request since the last call."""
        query = "&".join(f"name[]={name}" for name in ANSWERED)
        port = self._running.ports.metrics
        return ask(port, "GET", f"/metrics?{query}", timeout=self._timeout)[1].decode()

    def register(self, file: str, *, timeout: float) -> None:
        """Takes an archive of the model store beside the others, batched like them; its workers start after that.

        Raises Refused. TorchServe would also wait for the workers, but on one of the few threads that read requests:
        those of every client whose connection is that thread's waited with it, up to 35 s in one run.
        """
        batching = self._running.batching
        asked = {"url": file, "model_name": MODEL, "synchronous": "false", "batch_size": batching.batch_size}
        asked |= {"max_batch_delay": batching.batch_delay, "initial_workers": batching.workers}
        self._json("POST", f"/models?{urlencode(asked)}", timeout=timeout)

    def set_default(self, name: str) -> None:
        """Raises Refused."""
        self._json("PUT", f"/models/{MODEL}/{quote(name)}/set-default")

    def unregister(self, name: str) -> None:
        """Removes a version at once; requests that wait for it are never answered. Raises Refused."""
        self._json("DELETE", f"/models/{MODEL}/{quote(name)}", timeout=60.0)

    def _json(self, method: str, path: str, *, timeout: float | None = None) -> Any:
        key = tokens(self._state)["management"] if self._running.tokens else ""
        port = self._running.ports.management
        status, body = ask(port, method, path, key=key, timeout=timeout or self._timeout)
        content: Any = body[:200].decode(errors="replace")
        with contextlib.suppress(ValueError):
            content = json.loads(body)
        if status not in (200, 202):
            message = content.get("message", content) if isinstance(content, dict) else content
            raise Refused(status, str(message))
        return content


def ask(
    port: int,
    method: str,
    path: str,
    *,
    key: str = "",
    timeout: float,
    body: bytes | None = None,
    trusted: str = "",
) -> tuple[int, bytes]:
    """One HTTP request to one of the server's ports: status and body; with TLS where `trusted`, its certificate's file,
    is given, whatever name it was made for."""
    headers = {"Content-Type": "application/octet-stream"} if body is not None else {}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    connection: http.client.HTTPConnection
    if trusted:
        context = ssl.create_default_context(cafile=trusted)
        context.check_hostname = False
        connection = http.client.HTTPSConnection(HOST, port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def tokens(state: Path) -> dict[str, str]:
    """The tokens of a server that asks for them: "inference", "management", "API" -> key."""
    content: dict[str, Any] = json.loads((state / KEY_FILE).read_text())
    return {name: str(entry["key"]) for name, entry in content.items()}


def _version(content: dict[str, Any]) -> Version:
    return Version(
        name=str(content["modelVersion"]),
        workers=tuple(Worker(pid=int(w["pid"]), status=str(w["status"])) for w in content["workers"]),
        pending=int(content["jobQueueStatus"]["pendingRequests"]),
        batch_size=int(content["batchSize"]),
        batch_delay=int(content["maxBatchDelay"]),
    )


def not_ready_because(state: Path, running: Running, *, timeout: float = 30.0) -> str:
    """Why the server cannot answer, or '' where a worker is READY and a real prediction was answered.

    TorchServe's /ping and KServe's readiness say yes while the model is still loading.
    """
    try:
        workers = Management(state, running, timeout=timeout).default().workers
        if not any(worker.lives() for worker in workers):
            return none_ready(workers)
        key = tokens(state)["inference"] if running.tokens else ""
        port, path = running.ports.inference, f"/predictions/{MODEL}"
        trusted = running.certificate
        status, body = ask(port, "POST", path, key=key, timeout=timeout, body=tiny_png(), trusted=trusted)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a key file half written
        return f"it does not answer: {type(error).__name__}: {error}"
    with contextlib.suppress(ValueError):
        if status == 200 and "detections" in json.loads(body):
            return ""
    return f"a prediction is answered with {status}: {body[:200].decode(errors='replace')}"


def none_ready(workers: Sequence[Worker]) -> str:
    """What is said where none of a version's workers lives."""
    return f"no worker is ready ({', '.join(worker.trouble() for worker in workers) or 'none started'})"


def tiny_png() -> bytes:
    """A grey image of 32 x 32 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()
