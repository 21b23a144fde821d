"""A machine that serves: a folder with the archive, server/ and serve_config/, and nothing else of the project."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from export.archive import ROOT
from server.processes import Ports, load_running, server_processes
from tests.served.asking import Once

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
    def ports(self) -> Ports:
        running = load_running(self.state)
        assert running is not None
        return running.ports

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

    def rest(self, token: str = "") -> Once:
        return Once(f"http://127.0.0.1:{self.ports.inference}", token)

    def grpc(self, token: str = "") -> Once:
        return Once(f"grpc://127.0.0.1:{self.ports.grpc}", token)

    def processes(self) -> list[psutil.Process]:
        return server_processes(self.state)

    def workers(self) -> list[psutil.Process]:
        """The processes that run the handler."""
        return [p for p in self.processes() if any("model_service_worker" in part for part in p.cmdline())]

    def worker(self) -> psutil.Process:
        """The one process that runs the handler."""
        (found,) = self.workers()
        return found

    def batches(self) -> int:
        """How many batches the worker was given so far."""
        return (self.state / "logs" / "model_log.log").read_text().count("Backend received inference")

    def key(self) -> str:
        return str(json.loads((self.state / "key_file.json").read_text())["inference"]["key"])

    def end(self) -> None:
        self.command("stop")


def make_machine(folder: Path, archive: Path) -> Machine:
    """The archive, its sha256, server/ and serve_config/, copied into a folder."""
    for name in ("server", "serve_config"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "build").mkdir()
    for name in (archive.name, archive.name + ".sha256"):
        shutil.copyfile(archive.with_name(name), folder / "build" / name.replace(archive.name, "maskx.mar"))
    return Machine(folder)
