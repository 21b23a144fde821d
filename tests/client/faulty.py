"""Servers that fail on demand: a script of steps, one for each request, over REST and gRPC."""

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc

from client.generated import inference_pb2, inference_pb2_grpc

DETECTION: dict[str, Any] = {
    "category_id": 1,
    "category": "red disc",
    "bbox": [1.0, 2.25, 10.0, 5.5],
    "score": 0.98765,
    "area": 10,
    "mask_supervised": True,
    "segmentation": {"size": [30, 40], "counts": [60, 10, 1130]},
}
MODEL = {"name": "maskx", "version": "1.0"}
ONE: dict[str, Any] = {"image": {"height": 30, "width": 40}, "detections": [DETECTION]}
ANSWER: dict[str, Any] = {"model": MODEL, **ONE}
WORKER_DIED = {"code": 500, "type": "InternalServerException", "message": "Worker died."}


def error(code: int, kind: str, message: str = "m") -> dict[str, Any]:
    return {"error": {"code": code, "type": kind, "message": message}}


@dataclass
class Step:
    """What the server does with one request.

    status: HTTP's (REST). code: gRPC's, with `details`. cut: the connection ends after so many bytes of the answer,
    0: before the status line. hang: nothing is said until the test ends. drip: the body comes a byte at a time.
    """

    status: int = 200
    body: Any = field(default_factory=lambda: ANSWER)
    headers: dict[str, str] = field(default_factory=dict)
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    cut: int | None = None
    hang: bool = False
    drip: bool = False

    def content(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body, separators=(",", ":")).encode()


@dataclass
class Seen:
    """A request as the server saw it: its entries (`data`, parameters) and headers or metadata."""

    path: str
    entries: dict[str, bytes]
    headers: dict[str, str]


class Faulty:
    """`steps` are taken one a request, in order; when none is left, every request is answered."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.seen: list[Seen] = []
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.url = ""
        self.at_once = 0
        self.most_at_once = 0
        self.delay = 0.0
        self.together = 1  # requests that are to be under way before the first is answered
        self.met = threading.Event()
        self.connections: list[socket.socket] = []

    def next(self, seen: Seen) -> Step:
        with self.lock:
            self.seen.append(seen)
            return self.steps.pop(0) if self.steps else Step()

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            if self.at_once >= self.together:
                self.met.set()
        try:
            self.met.wait(10)
            time.sleep(self.delay)
            yield
        finally:
            with self.lock:
                self.at_once -= 1


class _Rest(BaseHTTPRequestHandler):
    faulty: Faulty
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.headers["Content-Type"]
        entries = {"data": body}
        if kind.startswith("multipart/"):
            message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
            entries = {
                str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)  # type: ignore[misc]
                for part in message.get_payload()
            }
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.faulty.counted():
            self._take(self.faulty.next(Seen(self.path, entries, headers)))

    def _take(self, step: Step) -> None:
        if step.hang:
            self.faulty.over.wait(30)
            self.close_connection = True
            return
        content = step.content()
        self.send_response_only(step.status)
        for name, value in step.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        if step.cut == 0:
            self._reset()
            return
        self.end_headers()
        if step.cut is not None:
            self.wfile.write(content[: step.cut])
            self.wfile.flush()
            self._reset()
        elif step.drip:
            for byte in content:
                if self.faulty.over.wait(0.02):
                    break
                self.wfile.write(bytes([byte]))
            self.close_connection = True
        else:
            self.wfile.write(content)

    def _reset(self) -> None:
        """Ends the connection with a reset, as a process that was killed does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def handle(self) -> None:
        self.faulty.connections.append(self.connection)
        with contextlib.suppress(ConnectionError):  # the client went away, as it may
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Threads(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that gave up


@contextmanager
def rest(*steps: Step, tls: Any = None, port: int = 0) -> Iterator[Faulty]:
    """A REST server that takes the steps; `tls` is an SSLContext of a server, `port` 0 any free one."""
    faulty = Faulty(*steps)
    handler = type("Handler", (_Rest,), {"faulty": faulty})
    with _Threads(("127.0.0.1", port), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        faulty.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield faulty
        finally:
            faulty.over.set()
            server.shutdown()
            thread.join()
            for connection in faulty.connections:
                with contextlib.suppress(OSError):  # closed already
                    connection.shutdown(socket.SHUT_RDWR)


class _Grpc(inference_pb2_grpc.InferenceAPIsServiceServicer):
    def __init__(self, faulty: Faulty) -> None:
        self.faulty = faulty

    def Predictions(self, request: Any, context: Any) -> Any:
        path = "/".join(part for part in (request.model_name, request.model_version) if part)
        entries = {name: bytes(value) for name, value in request.input.items()}
        with self.faulty.counted():
            step = self.faulty.next(Seen(path, entries, dict(context.invocation_metadata())))
            if step.hang:
                self.faulty.over.wait(30)
            if step.headers:
                context.set_trailing_metadata(tuple(step.headers.items()))
            if step.code != grpc.StatusCode.OK:
                context.abort(step.code, step.details)
            return inference_pb2.PredictionResponse(prediction=step.content())


@contextmanager
def over_grpc(*steps: Step, credentials: Any = None, port: int = 0) -> Iterator[Faulty]:
    """A gRPC server that takes the steps; `credentials` are those of a server with TLS, `port` 0 any free one."""
    faulty = Faulty(*steps)
    with futures.ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        inference_pb2_grpc.add_InferenceAPIsServiceServicer_to_server(_Grpc(faulty), server)
        if credentials is None:
            faulty.url = f"grpc://127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
        else:
            faulty.url = f"grpcs://127.0.0.1:{server.add_secure_port(f'127.0.0.1:{port}', credentials)}"
        server.start()
        try:
            yield faulty
        finally:
            faulty.over.set()
            server.stop(0).wait()


@contextmanager
def cutting() -> Iterator[tuple[str, list[int]]]:
    """A port that resets every connection after its first byte: host:port, and an item for each that was taken."""
    taken: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1)
                    taken.append(1)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", taken
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def later(scheme: str, port: int, seconds: float = 0.5) -> Iterator[None]:
    """A server of that scheme on a port that another one had, from half a second on."""
    over = threading.Event()
    begun: list[str] = []

    def run() -> None:
        if over.wait(seconds):
            return
        with rest(port=port) if scheme == "http" else over_grpc(port=port) as faulty:
            begun.append(faulty.url)
            over.wait(60)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
        assert begun, "the answer came before the server did"
    finally:
        over.set()
        thread.join()
