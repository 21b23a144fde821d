"""The page to try a model with, as bytes and headers for any server; and a small server of its own on loopback.

    python -m server.page [--server http://127.0.0.1:8080] [--port 8000]

serves it for a server that has none, such as TorchServe: what the page asks is passed on. The files are those of
client/js/, maskx_client/js/ in the wheel. Imports nothing else of the project.
"""

import argparse
import functools
import http.client
import json
import re
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

BESIDE = Path(__file__).resolve().parent.parent
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}
"""What goes with every file; deploy/nginx/page.conf says the same."""


class File(NamedTuple):
    """A file as it is sent: `headers` are all but Content-Type and Content-Length."""

    body: bytes
    content_type: str
    headers: Mapping[str, str]


@functools.cache
def files() -> Mapping[str, File]:
    """The page's files by their paths, "/" and "/js/...", to be answered to GET and HEAD without a secret.

    Raises FileNotFoundError: the client's files do not lie beside the server's, in a clone or in the wheel.
    """
    folders = [BESIDE / name / "js" for name in ("client", "maskx_client")]
    folder = next((one for one in folders if (one / "page" / "index.html").is_file()), None)
    if folder is None:
        raise FileNotFoundError(f"the page's files are neither in {folders[0]} nor in {folders[1]}")
    found = {"/": _file(folder / "page" / "index.html")}
    for path in sorted([*folder.glob("*.js"), *folder.glob("page/*.js"), *folder.glob("page/*.css")]):
        found[f"/js/{path.relative_to(folder).as_posix()}"] = _file(path)
    return found


def _file(path: Path) -> File:
    return File(path.read_bytes(), TYPES[path.suffix], HEADERS)


PASSED_ON = (
    "content-type",
    "authorization",
    "score_threshold",
    "max_detections",
    "categories",
    "mask_format",
    "output",
)
GIVEN_BACK = ("content-type", "retry-after")
TOLD = "/openapi.json"
"""What the page reads the names of the categories from; of a server that has none, such as TorchServe, it is 404."""
SECONDS = 300.0
"""What one answer may take."""
ASKED = re.compile(r"/predictions/[A-Za-z0-9_][A-Za-z0-9_.%-]{0,127}(/[0-9][A-Za-z0-9_.-]{0,31})?")


class PageHandler(BaseHTTPRequestHandler):
    """The page's files, and what the page asks passed on to `server.behind`."""

    server: "PageServer"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = files().get(path)
        if path == TOLD and self.command == "GET":
            self._pass_on(TOLD, b"", {})
        elif found is None:
            self._send(404, b"no such file; the page is at /", {"Content-Type": "text/plain"})
        else:
            self._send(200, found.body, {"Content-Type": found.content_type, **found.headers})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """A request of another page carries another Origin, and is refused: the server behind may be unguarded."""
        own = {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in own or (origin and origin.removeprefix("http://") not in own):
            self._refuse(403, "Forbidden", "only the page that comes from here may ask here")
            return
        if not ASKED.fullmatch(self.path):
            self._refuse(
                404, "NotFound", "images are sent to /predictions/MODEL or /predictions/MODEL/VERSION"
            )
            return
        length = self.headers.get("Content-Length", "")
        body = self.rfile.read(int(length)) if length.isdigit() else b""
        sent = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
        self._pass_on(self.path, body, sent)

    do_PUT = do_POST  # noqa: N815  curl -T

    def _pass_on(self, path: str, body: bytes, sent: Mapping[str, str]) -> None:
        method = "GET" if self.command == "GET" else "POST"
        try:
            status, answer, headers = _asked(self.server.behind, method, path, body, sent)
        except OSError as error:
            self.log_error("%s: %s", self.server.behind, error)
            self._refuse(502, "Unreachable", f"nobody answers at {self.server.behind}")
            return
        self._send(status, answer, {**HEADERS, **headers} if method == "GET" else headers)

    def _refuse(self, status: int, kind: str, message: str) -> None:
        said = {"error": {"code": status, "type": kind, "message": message}}
        self._send(status, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Errors alone are worth a line."""

    def log_error(self, format: str, *args: Any) -> None:
        print("error: " + format % args, file=sys.stderr)


class PageServer(ThreadingHTTPServer):
    """On loopback; `behind` is the address of the server that answers."""

    daemon_threads = True

    def __init__(self, port: int, behind: str) -> None:
        super().__init__(("127.0.0.1", port), PageHandler)
        self.behind = behind


def _asked(
    server: str, method: str, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[int, bytes, dict[str, str]]:
    parts = urllib.parse.urlsplit(server)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=SECONDS)
    try:
        connection.request(method, parts.path.rstrip("/") + path, body, dict(headers))
        answer = connection.getresponse()
        given = {name: answer.headers[name] for name in GIVEN_BACK if name in answer.headers}
        return answer.status, answer.read(), given
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()


def address(text: str) -> str:
    """The value of --server. Raises ValueError: it is no address."""
    expected = f"--server is {text!r}; http://HOST:PORT is expected, http://127.0.0.1:8080 for one"
    try:
        parts = urllib.parse.urlsplit(text)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError as error:
        raise ValueError(expected) from error
    if not known or parts.query or parts.username is not None:
        raise ValueError(expected)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m server.page", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--server", default="http://127.0.0.1:8080", help="who answers (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="of the page on 127.0.0.1; 0 takes a free one (%(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        files()
        server = PageServer(options.port, address(options.server))
    except (OSError, OverflowError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with server:
        print(f"http://127.0.0.1:{server.server_port}/ asks {server.behind}; Ctrl+C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
