"""The proxy of deploy/nginx with the real nginx, on free ports of loopback, as a user that is not root."""

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from export.archive import ROOT
from server.processes import free_ports

SECRET = "5ecre7-Of.the~test/client+with=odd_signs"
HEAD = f"POST /predictions/maskx HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n"
"""How a request begins that is written by hand."""
NOBODY = 65534
SIGNS_OF_LIFE = 60.0
"""Seconds that nginx may take for what it does at once; a limit for waits, not a measure."""
MANY = 1000
"""Requests, one after the other, after which a test no longer waits for one that is refused."""


@dataclass(frozen=True)
class Reply:
    """Status, headers by their names in small letters, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def error(self) -> dict[str, Any]:
        """The object of an error in the handler's form; fails where the body is anything else."""
        assert self.headers["content-type"] == "application/json", self
        content = json.loads(self.body)
        assert list(content) == ["error"] and list(content["error"]) == ["code", "type", "message"], content
        assert content["error"]["code"] == self.status, content
        found: dict[str, Any] = content["error"]
        return found


@dataclass
class Proxy:
    """`folder` holds a copy of deploy/nginx, the secrets, the certificate, and `run`, where nginx writes."""

    folder: Path
    nginx: Path
    port: int
    grpc_port: int
    settings: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        own = {
            "NGINX": str(self.nginx),
            "RUN": str(self.folder / "run"),
            "SECRETS": str(self.folder / "secrets"),
            "CERTIFICATE": str(self.folder / "certificate.pem"),
            "KEY": str(self.folder / "key.pem"),
            "TLS": "off",
            "LISTEN": f"127.0.0.1:{self.port}",
            "LISTEN_GRPC": f"127.0.0.1:{self.grpc_port}",
            "ACCESS_LOG": str(self.folder / "run" / "access.log"),
            "ERROR_LOG": str(self.folder / "run" / "error.log"),
            "WORKERS": "2",
            "RATE": "100000",
            "BURST": "100000",
            **self.settings,
        }
        library_path = {}
        if not str(self.nginx).startswith("/usr/"):
            library_path = {"LD_LIBRARY_PATH": str(self.folder / "libraries")}
        return {
            "PATH": os.environ["PATH"],
            **library_path,
            **{f"MASKX_{name}": value for name, value in own.items()},
        }

    def entrypoint(self, command: str) -> subprocess.CompletedProcess[str]:
        """The entry point of the container, with this proxy's settings."""
        return subprocess.run(
            ["sh", str(self.folder / "nginx" / "entrypoint.sh"), command],
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            **_nobody(),
        )

    def start(self) -> None:
        """Returns when it takes connections."""
        with (self.folder / "stderr").open("wb") as stderr:
            self.process = process = subprocess.Popen(
                ["sh", str(self.folder / "nginx" / "entrypoint.sh"), "run"],
                env=self.environment(),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                **_nobody(),
            )
        ports = [self.port] if self.settings.get("TLS") == "on" else [self.port, self.grpc_port]
        pid = self.folder / "run" / "nginx.pid"

        def runs() -> bool:
            # The file is empty while nginx only checks its files, listening as it does.
            begun = pid.is_file() and pid.read_text() and len(self.workers()) == 2
            return bool(begun) and all(map(takes_connections, ports))

        wait_until(lambda: process.poll() is not None or runs())
        assert process.poll() is None, (self.folder / "stderr").read_text()

    def workers(self) -> set[int]:
        """The ids of nginx's worker processes."""
        assert self.process is not None
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def leaving(self) -> set[int]:
        """Those of them that take nothing new and finish what they have."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children()
        return {child.pid for child in children if "shutting down" in "".join(child.cmdline())}

    def log(self) -> list[dict[str, Any]]:
        """What the access log says, one object per request; a line that is being written does not count yet."""
        written = (self.folder / "run" / "access.log").read_text().rpartition("\n")[0]
        return [json.loads(line) for line in written.splitlines()]

    def ask(
        self,
        method: str = "POST",
        path: str = "/predictions/maskx",
        body: bytes = b"an image",
        headers: dict[str, str] | None = None,
        *,
        secret: str | None = SECRET,
        over: http.client.HTTPConnection | None = None,
    ) -> Reply:
        """One request over a connection of its own, or over one that is kept."""
        authorization = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        connection = over or self.connect()
        try:
            connection.request(method, path, body=body, headers={**authorization, **(headers or {})})
            return reply_of(connection)
        finally:
            if over is None:
                connection.close()

    def connect(self) -> http.client.HTTPConnection:
        if self.settings.get("TLS") == "on":
            trust = ssl.create_default_context(cafile=str(self.folder / "certificate.pem"))
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=trust)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def raw(self, sent: bytes, *, patience: float = 30.0) -> bytes:
        """What comes back, until the proxy closes, to bytes that need not be HTTP."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=patience) as connection:
            connection.sendall(sent)
            return until_closed(connection)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(SIGNS_OF_LIFE)
        shutil.rmtree(self.folder)


def reply_of(connection: http.client.HTTPConnection) -> Reply:
    """The answer to what was sent over it."""
    answer = connection.getresponse()
    return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


@contextmanager
def proxy(**settings: str) -> Iterator[Proxy]:
    """A proxy that runs, with settings as in deploy/nginx/README.md but without MASKX_."""
    made = make_proxy(**settings)
    try:
        made.start()
        yield made
    finally:
        made.end()


def make_proxy(**settings: str) -> Proxy:
    """A proxy that is not started; its folder can be read by the user that runs it."""
    nginx = find_nginx()
    folder = Path(tempfile.mkdtemp(prefix="maskx-proxy-"))
    folder.chmod(0o755)
    shutil.copytree(ROOT / "deploy" / "nginx", folder / "nginx")
    shutil.copytree(ROOT / "client" / "js", folder / "nginx" / "js")
    if not str(nginx).startswith("/usr/"):
        shutil.copytree(nginx.parents[1] / "lib", folder / "libraries")
        nginx = Path(shutil.copy(nginx, folder / "nginx-binary"))
    (folder / "run").mkdir()
    (folder / "secrets").write_text(f"# comment\n\nsomebody {SECRET}\n")
    subprocess.run(["sh", str(folder / "nginx" / "trial-certificate.sh"), str(folder)], check=True)
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    ports = free_ports()
    return Proxy(folder, nginx, ports.inference, ports.grpc, settings)


def find_nginx() -> Path:
    """nginx on the path, else in build/tools, where `make tools` puts it, else a skip."""
    found = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    fetched = ROOT / "build" / "tools" / "nginx" / "sbin" / "nginx"
    if found is None and not fetched.is_file():
        pytest.skip("no nginx on the path nor in build/tools; make tools fetches it (Debian)")
    return Path(found) if found is not None else fetched


def takes_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(done: Any, patience: float = SIGNS_OF_LIFE) -> None:
    """Fails where it is not done in time."""
    end = time.monotonic() + patience
    while not done():
        assert time.monotonic() < end, f"not within {patience} s"
        time.sleep(0.02)


def until_closed(connection: socket.socket) -> bytes:
    """All that the other side sends until it closes or resets."""
    received = b""
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return received
        if not part:
            return received
        received += part


def _nobody() -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
