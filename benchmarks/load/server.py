"""The server under test: an archive packed with the batch size asked for, started on loopback, and its processes."""

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

from benchmarks import ROOT
from benchmarks.load.client import HOST
from export.archive import build_archive
from server.life import start, stop
from server.management import ask
from server.processes import Ports, free_ports, server_processes

WORKERS = ("model_service_worker.py", "light/worker.py")
"""Programs of the processes that run the handler: TorchServe's, the light server's."""
FRONT = "server.light"
"""Module that the light server's front runs; TorchServe's is Java."""
SHIPPED = ROOT / "serve_config" / "model-config.yaml"


def pack(torchscript: Path, folder: Path, *, version: str = "1.0", **changes: Any) -> Path:
    """The archive of a maskx.pt with the shipped model-config.yaml, changed by the keys given; None takes a key out."""
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / SHIPPED.name
    content = {**yaml.safe_load(SHIPPED.read_text()), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    configuration.write_text(yaml.safe_dump(kept))
    archive = folder / "maskx.mar"
    build_archive(torchscript, archive, version=version, configuration=configuration)
    return archive


class Served:
    """TorchServe, or the light server, with one archive, from entering to leaving; free ports, loopback, no tokens."""

    def __init__(self, archive: Path, state: Path, **settings: Any) -> None:
        """`settings` are further ones of `server.life.start`."""
        self.archive, self.state, self._settings = archive, state, settings
        self.ports = Ports()

    def __enter__(self) -> Self:
        self.ports = free_ports()
        start(archive=self.archive, state=self.state, ports=self.ports, **self._settings)
        return self

    def __exit__(self, *_: object) -> None:
        stop(state=self.state)

    @property
    def url(self) -> str:
        """Base URL of the inference API."""
        return f"http://{HOST}:{self.ports.inference}"

    def port(self, protocol: str) -> int:
        """Where "REST" or "gRPC" is answered."""
        return self.ports.inference if protocol == "REST" else self.ports.grpc

    def worker(self) -> psutil.Process | None:
        """The process that runs the handler; None while there is none, or two, as in a restart."""
        found = []
        for process in server_processes(self.state):
            with contextlib.suppress(psutil.Error):
                if any(word.endswith(WORKERS) for word in process.cmdline()):
                    found.append(process)
        return found[0] if len(found) == 1 else None

    def same_worker(self, before: psutil.Process | None) -> bool:
        """Whether the worker of now is that of `before`."""
        now = self.worker()
        return before is not None and now is not None and before.pid == now.pid

    def front(self) -> psutil.Process:
        """What listens: Java, or the light server's front."""
        (found,) = [one for one in server_processes(self.state) if is_front(one)]
        return found

    def cpu_seconds(self) -> float:
        """What all its processes have taken of the processor so far."""
        spent = 0.0
        for process in server_processes(self.state):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                spent += times.user + times.system
        return spent

    def kill_worker(self, how: signal.Signals) -> int:
        """Sends the signal to the worker; returns its pid. Raises ValueError where there is none."""
        worker = self.worker()
        if worker is None:
            raise ValueError("there is no worker to send a signal to")
        os.kill(worker.pid, how)
        return worker.pid

    def description(self) -> dict[str, Any]:
        """What the worker says of itself (threads, precision, device)."""
        _, answer = ask(self.ports.management, "GET", "/models/maskx?customized=true", timeout=60)
        content = json.loads(answer)[0]["customizedMetadata"]
        described: dict[str, Any] = json.loads(content) if isinstance(content, str) else content
        return described


def is_front(process: psutil.Process) -> bool:
    """Whether it is Java or the light server's front; a server's other processes are its workers and its starter."""
    return process.name() == "java" or any(word.endswith(FRONT) for word in process.cmdline())


class Memory:
    """Resident memory of the front and of the worker, looked up once: finding processes by their mark costs time."""

    def __init__(self, served: Served) -> None:
        self._processes = {"front": served.front(), "worker": served.worker()}

    def now(self) -> dict[str, float]:
        """MiB of each; one that is gone is left out."""
        found = {}
        for name, process in self._processes.items():
            with contextlib.suppress(psutil.Error):
                if process is not None:
                    found[name] = process.memory_info().rss / 2**20
        return found
