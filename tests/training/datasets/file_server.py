"""A local HTTP server with ranges, that can misbehave in the ways that downloads meet."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(kw_only=True)
class Behaviour:
    """What the server does, and what it was asked."""

    folder: Path
    cut_after: int | None = None
    """Bytes of a body after which the connection is closed."""
    ranges: bool = True
    etag: str | None = '"one"'
    failures: list[int] = field(default_factory=list)
    """Statuses of the next answers, before it serves again."""
    shift: int = 0
    """How far the part sent begins behind the part asked for."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range) of every request."""
    statuses: list[int] = field(default_factory=list)
    """Of the answers that brought something."""


class _Handler(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        told = self.behaviour
        asked = self.headers["Range"]
        told.requests.append((self.path, asked))
        path = told.folder / self.path.lstrip("/")
        if told.failures:
            self.send_error(told.failures.pop(0))
        elif not path.is_file():
            self.send_error(404)
        else:
            self._send(path.read_bytes(), asked)

    def _send(self, body: bytes, asked: str | None) -> None:
        told, size = self.behaviour, len(body)
        condition = self.headers["If-Range"]
        same = condition is None or (condition == told.etag and not condition.startswith("W/"))
        start = 0
        if asked and told.ranges and same:
            start = int(asked.removeprefix("bytes=").rstrip("-")) + told.shift
            if start >= size:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        told.statuses.append(206 if start else 200)
        body = body[start:]
        self.send_header("Content-Length", str(len(body)))
        if told.etag:
            self.send_header("ETag", told.etag)
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(ConnectionError):  # who got another file than expected does not read it
            self.wfile.write(body[: told.cut_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Behaviour]]:
    """The address of a server of `folder`, and how it behaves."""
    behaviour = Behaviour(folder=folder)
    handler = type("Handler", (_Handler,), {"behaviour": behaviour})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", behaviour
        finally:
            server.shutdown()
            thread.join()
