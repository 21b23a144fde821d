"""A server in TorchServe's place whose answers a test chooses, and which remembers what reached it."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Seen:
    """A request as it came, headers by their names in small letters."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """`hang_up` closes the connection after the answer without having said so."""

    status: int = 200
    body: bytes = b'{"detections":[]}'
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    hang_up: bool = False


@dataclass
class Upstream:
    """`answer` may be replaced at any time; None ends the connection in place of an answer."""

    port: int
    seen: list[Seen] = field(default_factory=list)
    answer: Callable[[Seen], Answer | None] = lambda _: Answer()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def upstream() -> Iterator[Upstream]:
    """One that runs."""
    made = Upstream(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = Seen(self.command, self.path, headers, body)
            made.seen.append(seen)
            answer = made.answer(seen)
            if answer is None:
                self.close_connection = True
                return
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status >= 400:
                self.send_header("connection", "close")  # as TorchServe
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":  # whose answer has the length of a body, and none
                self.wfile.write(answer.body)
            if answer.hang_up:
                self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128
        address_family = socket.AF_INET

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Says nothing: a proxy may hang up."""

    server = Server(("127.0.0.1", 0), Handler)
    made.port = server.server_port
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
