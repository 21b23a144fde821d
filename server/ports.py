"""The ports of a server: which, whether they are free, and as the command line gives them. All are on loopback."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import psutil

HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The five ports of TorchServe, all on loopback."""

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
    """--ports: `free`, or five numbers. Raises ValueError."""
    if list(values) == ["free"]:
        return free_ports()
    names = [field.name for field in fields(Ports)]
    if len(values) != len(names) or not all(v.isdigit() and 0 < int(v) < 65536 for v in values):
        raise ValueError(
            f"--ports is {' '.join(values)}; expected `free`, or five numbers: {', '.join(names)}"
        )
    return Ports(**dict(zip(names, map(int, values), strict=True)))


def _owner_of(port: int) -> str:
    """Who listens on a port, in brackets, or '' where that cannot be seen."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return f" (process {connection.pid}, {psutil.Process(connection.pid).name()})"
    return ""
