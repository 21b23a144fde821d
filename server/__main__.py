"""Starts, probes and stops TorchServe on this machine, on loopback.

    python -m server start [--archive build/maskx.mar] [--ports free] [--tokens] [--model-api]
    python -m server run   [the same] [--probes 127.0.0.1:8083] [--linger 2] [--drain 150]
    python -m server ready
    python -m server stop

`start` returns when the model has answered a prediction. `run` stays in the foreground, tells whether it is ready on an
HTTP endpoint, and ends on SIGTERM when every request is answered. Everything a server writes lies in its state folder,
which may be a tmpfs, so several can run beside each other, each with a folder and ports of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from server.archives import MODEL
from server.life import ready, start, start_process, stop
from server.management import KEY_FILE
from server.ports import HOST, Ports, free_ports, ports_of
from server.probe import address
from server.processes import Running
from server.run import run

__all__ = ["free_ports", "main", "ready", "start", "stop"]


def report(running: Running, state: Path, archive: Path, seconds: float) -> str:
    """What the one who started a server wants to know."""
    url = f"{address(running.ports)}/predictions/{MODEL}"
    header = ' -H "Authorization: Bearer $TOKEN"' if running.tokens else ""
    batching = running.batching
    lines = [
        f"{MODEL} answers after {seconds:.1f} s: REST {url}, gRPC {HOST}:{running.ports.grpc}",
        f"  try   curl{header} -T photo.jpg {url}",
        f"  logs  {state / 'logs'}",
        "  end   make stop"
        if state == Path("build/serve")
        else f"  end   python -m server stop --state {state}",
        f"  batches of up to {batching.batch_size}, waited for {batching.batch_delay} ms; workers: {batching.workers}; "
        f"requests that may wait: {batching.queue}",
    ]
    if running.tokens:
        lines.append(
            f"  token of the inference API: {state / KEY_FILE} (changes every hour and at every start)"
        )
    else:
        lines.append("  no tokens: only this machine can reach it, and every program on it can")
    if running.model_api:
        lines.append("  models can be registered and removed: python -m server.versions --help")
    if not archive.with_name(archive.name + ".sha256").is_file():
        lines.append(f"  {archive} was not checked: there is no {archive.name}.sha256 beside it")
    return "\n".join(lines)


def probes_of(text: str) -> tuple[str, int]:
    """--probes: HOST:PORT; port 0 takes a free one. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"--probes is {text!r}; HOST:PORT is expected, 127.0.0.1:8083 for one")
    return host, int(port)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "archive": options.archive,
        "state": options.state,
        "ports": ports_of(options.ports) if options.ports else None,
        "with_tokens": options.tokens,
        "timeout": options.timeout,
        "model_api": options.model_api,
        "batch_size": options.batch_size,
        "batch_delay": options.batch_delay,
        "workers": options.workers,
    }


def _start(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    settings = _settings(options)
    print(f"starting TorchServe with {options.archive} ...", flush=True)
    running = start(**settings)
    print(report(running, options.state, options.archive, time.monotonic() - begin))
    return 0


def _run(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    settings = _settings(options)

    def begins() -> Any:
        print(f"starting TorchServe with {options.archive} ...", flush=True)
        running, process = start_process(**settings)
        print(report(running, options.state, options.archive, time.monotonic() - begin), flush=True)
        return running, process

    return run(
        begins,
        state=options.state,
        probes=probes_of(options.probes),
        linger=options.linger,
        drain=options.drain,
        say=lambda line: print(line, flush=True),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    starts = commands.add_parser("start", help="start TorchServe and wait until the model answers")
    runs = commands.add_parser("run", help="the same in the foreground, until SIGTERM; for containers")
    for command in (starts, runs):
        command.add_argument("--archive", type=Path, default=Path("build/maskx.mar"))
        command.add_argument(
            "--ports",
            nargs="+",
            metavar="PORT",
            help="`free`, or five numbers: REST inference, management, metrics, gRPC inference, gRPC management "
            f"(default: {' '.join(map(str, astuple(Ports())))})",
        )
        command.add_argument("--tokens", action="store_true", help="ask for TorchServe's own tokens")
        command.add_argument(
            "--model-api", action="store_true", help="versions can be registered and removed while it runs"
        )
        command.add_argument("--batch-size", type=int, help="requests in a batch (default: 4, with a GPU 8)")
        command.add_argument("--batch-delay", type=int, help="milliseconds to wait for them (default: 1)")
        command.add_argument(
            "--workers",
            type=int,
            help="handler processes, which share the cores (default: 1; for each GPU 1 to 4, by cores and memory)",
        )
        command.add_argument(
            "--timeout", type=float, default=180.0, help="seconds until the model must answer"
        )
    runs.add_argument(
        "--probes",
        default=f"{HOST}:8083",
        metavar="HOST:PORT",
        help="where /ready and /live are answered (default: %(default)s)",
    )
    runs.add_argument(
        "--linger",
        type=float,
        default=2.0,
        help="seconds that a server told to end goes on answering, not ready any more (default: %(default)g)",
    )
    runs.add_argument(
        "--drain",
        type=float,
        default=150.0,
        help="seconds it then waits for answers, at most (default: %(default)g)",
    )
    readies = commands.add_parser("ready", help="exit status 0 if a prediction is answered now, else 1")
    stops = commands.add_parser("stop", help="stop TorchServe at once")
    for command in (starts, runs, readies, stops):
        command.add_argument(
            "--state",
            type=Path,
            default=Path("build/serve"),
            help="the server's folder (default: %(default)s)",
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 1 not ready or ended by itself, 2 it could not be done."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "start":
            return _start(options)
        if options.command == "run":
            return _run(options)
        if options.command == "stop":
            print("stopped" if stop(state=options.state) else "no server was running")
            return 0
        reason = ready(state=options.state)
        print(f"not ready: {reason}" if reason else "ready")
        return 1 if reason else 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before the model was ready; nothing is left running", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
