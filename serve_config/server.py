"""Starts, probes and stops TorchServe on this machine, on loopback.

    python -m serve_config.server start [--archive build/maskx.mar] [--ports free] [--tokens]
    python -m serve_config.server ready
    python -m serve_config.server stop

`start` returns when the model has answered a prediction. Everything a server writes lies in its state folder, so
several can run beside each other, each with a folder and ports of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path

import psutil

from serve_config.java import find_java_home
from serve_config.probe import HOST, KEY_FILE, address, not_ready_because
from serve_config.processes import (
    Ports,
    Running,
    end_processes,
    forget_running,
    load_running,
    mark_of,
    save_running,
)

MODEL = "maskx"
CONFIG = Path(__file__).resolve().parent / "config.properties"
CLAIM = ".maskx-server"
"""Marks a state folder, whose content is removed at the next start."""
LONGEST_SOCKET_FOLDER = 80
"""Workers listen on Unix sockets, whose whole path may have 107 bytes."""


def start(
    *,
    archive: Path = Path("build/maskx.mar"),
    state: Path = Path("build/serve"),
    ports: Ports | None = None,
    with_tokens: bool = False,
    timeout: float = 180.0,
) -> Running:
    """Starts a server and waits until it answers; one that runs from the same state folder is stopped first.

    Args:
        archive: the .mar; where a file of the same name and `.sha256` lies beside it, the two must agree.
        state: folder for everything the server writes; a new or an empty one, or one of an earlier server.
        ports: None for TorchServe's usual ones.
        with_tokens: leaves TorchServe's own tokens on; they then stand in the state folder's key_file.json.
        timeout: seconds until the model must answer.

    Raises:
        ValueError: what is wrong and what to do; nothing is left running.
    """
    if not archive.is_file():
        raise ValueError(f"there is no {archive}; make it with make archive, or name one with --archive")
    ports = ports or Ports()
    claim(state)
    stop(state=state)
    require_free(ports)
    java_home = find_java_home()
    shutil.rmtree(state / "logs", ignore_errors=True)
    running = Running(ports=ports, temporary=str(_temporary_folder(state)), tokens=with_tokens)
    save_running(state, running)
    try:
        store = state / "model-store"
        store.mkdir()
        checked_copy(archive, store / f"{MODEL}.mar")
        (state / "config.properties").write_text(
            effective_config(CONFIG.read_text(), ports, store=store, with_tokens=with_tokens)
        )
        process = _launch(state, running, java_home)
        _wait_until_ready(state, running, process, timeout)
    except BaseException:  # Ctrl-C too must leave nothing running
        stop(state=state)
        raise
    return running


def stop(*, state: Path = Path("build/serve")) -> bool:
    """Ends every process of the server with this state folder; says whether there was one. The logs stay."""
    ended = end_processes(state)
    if (state / CLAIM).exists():
        _clear(state)
    return ended > 0


def ready(*, state: Path = Path("build/serve")) -> str:
    """Why the server cannot answer, or '' where a prediction was answered just now."""
    running = load_running(state)
    if running is None:
        return f"no server was started from {state}"
    return not_ready_because(state, running, model=MODEL)


def claim(state: Path) -> None:
    """Makes the state folder, or takes over that of an earlier server; raises ValueError where it is anything else."""
    state.mkdir(parents=True, exist_ok=True)
    if any(state.iterdir()) and not (state / CLAIM).exists():
        raise ValueError(
            f"{state} holds files that are not a server's; name a new or an empty folder with --state"
        )
    (state / CLAIM).touch()


def checked_copy(archive: Path, copy: Path) -> None:
    """Copies the archive, and compares what was copied with the sha256 beside the archive, where there is one."""
    shutil.copyfile(archive, copy)
    beside = archive.with_name(archive.name + ".sha256")
    if not beside.is_file():
        return
    with open(copy, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = (beside.read_text().split() or ["nothing"])[0]
    if digest != expected:
        raise ValueError(
            f"{archive} has sha256 {digest}, but {beside.name} says {expected}: it was changed or not copied whole. "
            "Make it again (make archive), or copy both files again"
        )


def effective_config(shipped: str, ports: Ports, *, store: Path, with_tokens: bool) -> str:
    """The shipped config.properties with this server's ports and model store, still on loopback.

    Raises:
        ValueError: the shipped file lacks a key that is to be replaced, so that a misspelt key is not left to work.
    """
    store = store.resolve()
    settings = {
        "inference_address": f"http://{HOST}:{ports.inference}",
        "management_address": f"http://{HOST}:{ports.management}",
        "metrics_address": f"http://{HOST}:{ports.metrics}",
        "grpc_inference_address": HOST,
        "grpc_inference_port": str(ports.grpc),
        "grpc_management_address": HOST,
        "grpc_management_port": str(ports.grpc_management),
        "disable_token_authorization": "false" if with_tokens else "true",
        "allowed_urls": f"file://{store}/.*",
    }
    lines = shipped.splitlines()
    for key, value in settings.items():
        places = [place for place, line in enumerate(lines) if line.startswith(f"{key}=")]
        if len(places) != 1:
            raise ValueError(f"{CONFIG.name} must set {key} once, and sets it {len(places)} times")
        lines[places[0]] = f"{key}={value}".replace(
            "\\", "\\\\"
        )  # a backslash begins an escape in such a file
    return "\n".join(lines) + "\n"


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


def free_ports() -> Ports:
    """Five ports that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        numbers = []
        for _ in fields(Ports):
            probe = stack.enter_context(socket.socket())
            probe.bind((HOST, 0))
            numbers.append(probe.getsockname()[1])
    return Ports(**dict(zip((field.name for field in fields(Ports)), numbers, strict=True)))


def failure_reason(logs: Path) -> str:
    """The last error of the worker, or of TorchServe itself, in one line out of the logs; '' where there is none."""
    for name, pattern in (
        ("model_log.log", r"MODEL_LOG - ((?:\w+\.)*\w+(?:Error|Exception)\b.*)"),
        ("ts_log.log", r"(?:\[ERROR\].* - |^)((?:\w+\.)*\w*(?:Error|Exception): .*)"),
        (
            "torchserve.out",
            r"^(?:Caused by: |Exception in thread \S+ )?((?:\w+\.)*\w*(?:Error|Exception)\b.*)",
        ),
    ):
        with contextlib.suppress(FileNotFoundError):
            found = re.findall(pattern, (logs / name).read_text(errors="replace"), re.MULTILINE)
            if found:
                return str(found[-1])
    return ""


def _launch(state: Path, running: Running, java_home: Path) -> psutil.Popen:
    """TorchServe in a session of its own, without the project on its path."""
    logs = state / "logs"
    logs.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TS_CONFIG_FILE")
    }
    environment |= mark_of(state)
    environment |= {
        "JAVA_HOME": str(java_home),
        "TMPDIR": running.temporary,
        "TEMP": running.temporary,
        "LOG_LOCATION": str(logs.resolve()),
        "METRICS_LOCATION": str(logs.resolve()),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--no-config-snapshots"]
    command += ["--ts-config", "config.properties", "--model-store", "model-store"]
    command += ["--models", f"{MODEL}={MODEL}.mar"]
    with open(logs / "torchserve.out", "wb") as out:
        return psutil.Popen(
            command,
            cwd=state,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_until_ready(state: Path, running: Running, process: psutil.Popen, timeout: float) -> None:
    """Returns when the model has answered; raises ValueError with the reason where it cannot."""
    logs = state / "logs"
    deadline = time.monotonic() + timeout
    while True:
        reason = not_ready_because(state, running, model=MODEL)
        if not reason:
            return
        # TorchServe starts a worker that cannot load again and again; one failure is enough to know why.
        failure = failure_reason(logs)
        if _gave_up(logs):
            raise ValueError(f"the model cannot be served: {failure or 'no reason given'} (logs: {logs})")
        if process.poll() is not None:
            raise ValueError(f"TorchServe ended at once: {failure or 'no reason given'} (logs: {logs})")
        if time.monotonic() > deadline:
            raise ValueError(f"not ready after {timeout:.0f} s: {failure or reason} (logs: {logs})")
        time.sleep(0.1)


def _gave_up(logs: Path) -> bool:
    """Whether a worker could not load the model, or TorchServe the archive."""
    with contextlib.suppress(FileNotFoundError):
        return (
            re.search(
                r"Load model failed|Failed to load model", (logs / "ts_log.log").read_text(errors="replace")
            )
            is not None
        )
    return False


def _temporary_folder(state: Path) -> Path:
    """Where worker sockets and the extracted archive lie: in the state folder, unless its path is too long."""
    folder = state.resolve() / "tmp"
    if len(os.fsencode(folder)) > LONGEST_SOCKET_FOLDER:
        return Path(tempfile.mkdtemp(prefix="maskx-"))
    folder.mkdir()
    return folder


def _clear(state: Path) -> None:
    """Removes what a server leaves in its state folder, but for the logs."""
    running = load_running(state)
    if running is not None:
        shutil.rmtree(running.temporary, ignore_errors=True)
    for name in ("model-store", "tmp"):
        shutil.rmtree(state / name, ignore_errors=True)
    for name in ("config.properties", KEY_FILE):
        (state / name).unlink(missing_ok=True)
    forget_running(state)


def _owner_of(port: int) -> str:
    """Who listens on a port, in brackets, or '' where that cannot be seen."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return f" (process {connection.pid}, {psutil.Process(connection.pid).name()})"
    return ""


def _ports_of(values: Sequence[str]) -> Ports:
    """--ports: `free`, or five numbers. Raises ValueError."""
    if list(values) == ["free"]:
        return free_ports()
    names = [field.name for field in fields(Ports)]
    if len(values) != len(names) or not all(v.isdigit() and 0 < int(v) < 65536 for v in values):
        raise ValueError(
            f"--ports is {' '.join(values)}; expected `free`, or five numbers: {', '.join(names)}"
        )
    return Ports(**dict(zip(names, map(int, values), strict=True)))


def _report(running: Running, state: Path, seconds: float) -> str:
    url = f"{address(running.ports)}/predictions/{MODEL}"
    header = ' -H "Authorization: Bearer $TOKEN"' if running.tokens else ""
    lines = [
        f"{MODEL} answers after {seconds:.1f} s: REST {url}, gRPC {HOST}:{running.ports.grpc}",
        f"  try   curl{header} -T photo.jpg {url}",
        f"  logs  {state / 'logs'}",
        "  end   make stop"
        if state == Path("build/serve")
        else f"  end   python -m serve_config.server stop --state {state}",
    ]
    if running.tokens:
        lines.append(
            f"  token of the inference API: {state / KEY_FILE} (changes every hour and at every start)"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 1 not ready, 2 it could not be done."""
    parser = argparse.ArgumentParser(prog="python -m serve_config.server", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    starts = commands.add_parser("start", help="start TorchServe and wait until the model answers")
    starts.add_argument("--archive", type=Path, default=Path("build/maskx.mar"))
    starts.add_argument(
        "--ports",
        nargs="+",
        metavar="PORT",
        help="`free`, or five numbers: REST inference, management, metrics, gRPC inference, gRPC management "
        f"(default: {' '.join(map(str, astuple(Ports())))})",
    )
    starts.add_argument("--tokens", action="store_true", help="ask for TorchServe's own tokens")
    starts.add_argument("--timeout", type=float, default=180.0, help="seconds until the model must answer")
    readies = commands.add_parser("ready", help="exit status 0 if a prediction is answered now, else 1")
    stops = commands.add_parser("stop", help="stop TorchServe")
    for command in (starts, readies, stops):
        command.add_argument(
            "--state",
            type=Path,
            default=Path("build/serve"),
            help="the server's folder (default: %(default)s)",
        )
    options = parser.parse_args(arguments)
    try:
        if options.command == "start":
            begin = time.monotonic()
            ports = _ports_of(options.ports) if options.ports else None
            print(f"starting TorchServe with {options.archive} ...", flush=True)
            running = start(
                archive=options.archive,
                state=options.state,
                ports=ports,
                with_tokens=options.tokens,
                timeout=options.timeout,
            )
            print(_report(running, options.state, time.monotonic() - begin))
        elif options.command == "stop":
            print("stopped" if stop(state=options.state) else "no server was running")
        else:
            reason = ready(state=options.state)
            print(f"not ready: {reason}" if reason else "ready")
            return 1 if reason else 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before the model was ready; nothing is left running", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
