"""A machine that serves: a folder with the archive, server/ and serve_config/, and nothing else of the project."""

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.load.server import WORKERS
from export.archive import ROOT
from server.management import Management
from server.processes import LIGHT, Ports, Running, load_running, server_processes
from tests.served.asking import Once
from tests.served.nginx import Reply, reply_of

SECRET = "MASKX_TEST_API_TOKEN"
UNSUSPECTED = "DATABASE_URL"


@dataclass
class Machine:
    """`folder` holds all of it; `started` is what the command said when the server was up."""

    folder: Path
    started: str = ""

    @property
    def state(self) -> Path:
        return self.folder / "build" / "serve"

    @property
    def running(self) -> Running:
        running = load_running(self.state)
        assert running is not None
        return running

    @property
    def ports(self) -> Ports:
        return self.running.ports

    def management(self) -> Management:
        return Management(self.state, self.running)

    @property
    def environment(self) -> dict[str, str]:
        """Without anything of the project on the path, with what is a secret by its name, and by its content alone."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {SECRET: "never to be seen by the worker", "MASKX_TEST_PLAIN": "may be seen"}
        return environment | {UNSUSPECTED: "postgres://user:never@to.be.seen"}

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python -m server ...`"""
        return subprocess.run(
            [sys.executable, "-m", "server", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, *arguments: str) -> subprocess.Popen[bytes]:
        """`python -m server run ...`, left running; what it says stands in run.log."""
        with open(self.folder / "run.log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "server", "run", "--ports", "free", *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.command("start", "--ports", "free", *arguments)

    def refused(self) -> str:
        """The one line with which a start fails, leaving nothing running."""
        failed = self.start()
        assert failed.returncode == 2 and failed.stderr.count("\n") == 1, failed
        assert self.processes() == []
        return failed.stderr

    def rest(self, token: str = "") -> Once:
        return Once(f"http://127.0.0.1:{self.ports.inference}", token)

    def grpc(self, token: str = "") -> Once:
        return Once(f"grpc://127.0.0.1:{self.ports.grpc}", token)

    def ask(
        self,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        path: str = "/predictions/maskx",
        *,
        method: str = "POST",
        port: int | None = None,
    ) -> Reply:
        """One request without our client, with exactly these headers, in UTF-8, and Host and Content-Length."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.ports.inference, timeout=60)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value.encode())
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            return reply_of(connection)
        finally:
            connection.close()

    def processes(self) -> list[psutil.Process]:
        return server_processes(self.state)

    def workers(self) -> list[psutil.Process]:
        """The processes that run the handler."""
        return [p for p in self.processes() if any(part.endswith(WORKERS) for part in p.cmdline())]

    def worker(self) -> psutil.Process:
        """The one process that runs the handler."""
        (found,) = self.workers()
        return found

    def batches(self) -> int:
        """How many batches the worker was given so far."""
        if self.running.engine == LIGHT:
            series = rb"^maskx_batch_size_count{.*} ([0-9.]+)$"
            found = re.search(series, self.ask(path="/metrics", method="GET").body, re.MULTILINE)
            return int(float(found[1])) if found else 0
        return (self.state / "logs" / "model_log.log").read_text().count("Backend received inference")

    def key(self) -> str:
        return str(json.loads((self.state / "key_file.json").read_text())["inference"]["key"])

    def end(self) -> None:
        self.command("stop")


def make_machine(folder: Path, archive: Path) -> Machine:
    """The archive, its sha256, server/, serve_config/ and the page, copied into a folder."""
    for name in ("server", "serve_config", "client/js"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "build").mkdir()
    for name in (archive.name, archive.name + ".sha256"):
        shutil.copyfile(archive.with_name(name), folder / "build" / name.replace(archive.name, "maskx.mar"))
    return Machine(folder)


@contextmanager
def serving(folder: Path, archive: Path, *arguments: str) -> Iterator[Machine]:
    """One whose server was started and is ready; it is ended at last."""
    machine = make_machine(folder, archive)
    try:
        started = machine.start(*arguments)
        assert started.returncode == 0, started.stderr
        machine.started = started.stdout
        yield machine
    finally:
        machine.end()
