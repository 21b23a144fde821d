"""The processes of one server, its ports, and what is known of a running one.

Processes are found again by a mark in their environment, the state folder's path: it is inherited by Java and by every
worker, it survives the death of any of them, and no other process has it. So stopping leaves nothing behind and hurts
nobody else.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import psutil

HOST = "127.0.0.1"
MARK = "MASKX_SERVER_STATE"
STATE_FILE = "server.json"
TORCHSERVE, LIGHT = ENGINES = ("torchserve", "light")
"""What answers: TorchServe, or the light server of server/light/."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The five ports of TorchServe, all on loopback; the light server leaves the last one alone."""

    inference: int = 8080
    management: int = 8081
    metrics: int = 8082
    grpc: int = 7070
    grpc_management: int = 7071


def free_ports() -> Ports:
    """Five ports that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        numbers = []
        for _ in fields(Ports):
            probe = stack.enter_context(socket.socket())
            probe.bind((HOST, 0))
            numbers.append(probe.getsockname()[1])
    return Ports(**dict(zip((field.name for field in fields(Ports)), numbers, strict=True)))


def require_free(ports: Ports) -> None:
    """Raises ValueError naming the first port that is taken, by whom where that can be seen, and the cure."""
    numbers = astuple(ports)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"the five ports must differ, and are {', '.join(map(str, numbers))}")
    for field in fields(ports):
        port = getattr(ports, field.name)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise ValueError(
                    f"port {port} ({field.name}) cannot be used: {error.strerror}{_owner_of(port)}. Stop what listens "
                    "there, or choose other ports: --ports free, or --ports with five numbers"
                ) from error


def ports_of(values: Sequence[str]) -> Ports:
    """The ports of --ports, which is `free` or five numbers. Raises ValueError."""
    if list(values) == ["free"]:
        return free_ports()
    names = [field.name for field in fields(Ports)]
    if len(values) != len(names) or not all(v.isdigit() and 0 < int(v) < 65536 for v in values):
        expected = f"`free`, or five numbers: {', '.join(names)}"
        raise ValueError(f"--ports is {' '.join(values)}; expected {expected}")
    return Ports(**dict(zip(names, map(int, values), strict=True)))


def _owner_of(port: int) -> str:
    """Who listens on a port, in brackets, or '' where that cannot be seen."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return f" (process {connection.pid}, {psutil.Process(connection.pid).name()})"
    return ""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How many requests a worker gets at once, how many milliseconds it waits for them, and how many workers.

    queue: requests that may wait. on_gpu: whether the workers are to compute on GPUs.
    """

    batch_size: int
    batch_delay: int
    workers: int
    queue: int = 100
    on_gpu: bool = False


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that was started.

    temporary: folder of sockets and extracted models. tokens: whether it asks for tokens. model_api: whether models can
    be registered and removed. batching: of the model, and of versions registered later. engine: one of ENGINES.
    Of the light server alone: host, that predictions are answered at; cors_origin, as `start` has it; certificate and
    key, files for TLS, "" for none.
    """

    ports: Ports
    temporary: str
    tokens: bool
    model_api: bool = False
    batching: Batching = Batching(batch_size=1, batch_delay=1, workers=1)
    engine: str = TORCHSERVE
    host: str = HOST
    cors_origin: str = ""
    certificate: str = ""
    key: str = ""

    def tls_files(self) -> tuple[Path, Path] | None:
        """The files of certificate and key; None where it speaks plain HTTP."""
        return (Path(self.certificate), Path(self.key)) if self.certificate else None


def save_running(state: Path, running: Running) -> None:
    """Written whole or not at all."""
    draft = state / f".{STATE_FILE}"
    draft.write_text(json.dumps(asdict(running), indent=1) + "\n")
    os.replace(draft, state / STATE_FILE)


def load_running(state: Path) -> Running | None:
    """What was started last from this state folder; None where nothing was, or it was stopped."""
    try:
        content = json.loads((state / STATE_FILE).read_text())
    except FileNotFoundError:
        return None
    ports, batching = Ports(**content.pop("ports")), Batching(**content.pop("batching"))
    return Running(ports=ports, batching=batching, **content)


def mark_of(state: Path) -> dict[str, str]:
    """The environment variable that marks the processes of the server with this state folder."""
    return {MARK: str(state.resolve())}


def server_processes(state: Path) -> list[psutil.Process]:
    """Every living process of the server with this state folder; zombies are dead."""
    mark = str(state.resolve())
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def end_processes(state: Path, *, patience: float = 10.0) -> int:
    """Ends them all, gently, then after `patience` seconds by force; returns how many there were.

    Raises ValueError: some are still there.
    """
    seen: set[int] = set()
    begin = time.monotonic()
    while remaining := server_processes(state):
        elapsed = time.monotonic() - begin
        if elapsed > patience + 10.0:
            raise ValueError(f"processes {sorted(process.pid for process in remaining)} cannot be ended")
        for process in remaining:
            with contextlib.suppress(psutil.Error):
                if elapsed > patience:
                    process.kill()
                elif process.pid not in seen:
                    process.terminate()
            seen.add(process.pid)
        psutil.wait_procs(remaining, timeout=0.2)
    return len(seen)
