"""Starts, watches, changes and stops TorchServe, or the light server, on this machine, on loopback.

    python -m server start [--archive build/maskx.mar] [--ports free] [--tokens] [--model-api] [--cors-origin ORIGIN]
    python -m server start --engine light [the same] [--host 0.0.0.0] [--tls-cert FILE --tls-key FILE]
    python -m server start --compile [--checkpoint build/train/checkpoint.pt] [the same]
    python -m server run   [the same] [--probes 127.0.0.1:8083] [--linger 2] [--drain 150]
    python -m server ready
    python -m server stop
    python -m server versions
    python -m server register --archive build/maskx-2.mar
    python -m server default 2.0
    python -m server unregister 1.0

`start` returns when the model has answered a prediction. `run` stays in the foreground, tells whether it is ready on an
HTTP endpoint, and ends on SIGTERM when every request is answered. `versions` lists the versions of the model that are
loaded; a server that was started with --model-api can be given others, and be told which is the default. Everything a
server writes lies in its state folder, which may be a tmpfs, so several can run beside each other, each with a folder
and ports of its own.
"""

import argparse
import http.client
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path

import psutil

from .compiling import package_for
from .drain import run
from .life import ARCHIVE, STATE, ready, require_archive, start, stop
from .management import KEY_FILE
from .processes import ENGINES, HOST, LIGHT, TORCHSERVE, Ports, Running, ports_of
from .settings import INSTALLED, MODEL, PROGRAM
from .versions import register, set_default, table, unregister


def report(running: Running, state: Path, archive: Path, seconds: float) -> str:
    """What whoever starts a server wants to know: its addresses, logs and batches, and how to end it."""
    scheme = "https" if running.certificate else "http"
    url = f"{scheme}://{running.host}:{running.ports.inference}/predictions/{MODEL}"
    header = ' -H "Authorization: Bearer $TOKEN"' if running.tokens else ""
    batching = running.batching
    end = "make stop" if state == STATE and not INSTALLED else f"{PROGRAM} stop --state {state}"
    lines = [
        f"{MODEL} answers after {seconds:.1f} s: REST {url}, gRPC {running.host}:{running.ports.grpc}",
        f"  try   curl{header} -T photo.jpg {url}",
        f"  logs  {state / 'logs'}",
        f"  end   {end}",
        f"  batches of up to {batching.batch_size}, waited for {batching.batch_delay} ms; workers: {batching.workers}; "
        f"requests that may wait: {batching.queue}",
    ]
    if running.tokens:
        key = state / KEY_FILE
        lines.append(f"  token of the inference API: {key} (changes every hour and at every start)")
    elif running.host == HOST:
        lines.append("  no tokens: only this machine can reach it, and every program on it can")
    else:
        lines.append(f"  no tokens: whoever reaches {running.host} can ask")
    if running.model_api:
        lines.append(f"  versions can be registered and removed: {PROGRAM} --help")
    if not archive.with_name(archive.name + ".sha256").is_file():
        lines.append(f"  {archive} was not checked: there is no {archive.name}.sha256 beside it")
    return "\n".join(lines)


def probes_of(text: str) -> tuple[str, int]:
    """Host and port of --probes, which is HOST:PORT; port 0 takes a free one. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"--probes is {text!r}; HOST:PORT is expected, 127.0.0.1:8083 for one")
    return host, int(port)


def tls_of(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """The files of --tls-cert and --tls-key, None without them. Raises ValueError: one without the other."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ValueError("--tls-cert and --tls-key go together: the files of a certificate and of its key")
    return certificate, key


def compiled_for(options: argparse.Namespace) -> Path | None:
    """The package that --compile asks for. Raises ValueError: --checkpoint without it, or no archive to compile."""
    if not options.compile:
        if options.checkpoint is not None:
            raise ValueError("--checkpoint is what --compile compiles; without --compile the archive has all")
        return None
    require_archive(options.archive)
    return package_for(options.archive, checkpoint=options.checkpoint, say=partial(print, flush=True))


STARTS_WITH = (
    "archive",
    "state",
    "ports",
    "with_tokens",
    "timeout",
    "model_api",
    "cors_origin",
    "engine",
    "host",
)
NAMES = {TORCHSERVE: "TorchServe", LIGHT: "the light server"}
BATCHED_BY = ("batch_size", "batch_delay", "workers")
"""The options that are arguments of `start`, by their names."""


def _start(options: argparse.Namespace) -> tuple[Running, psutil.Popen]:
    """Starts the server that the options ask for, and prints the report of it."""
    begin = time.monotonic()
    print(f"starting {NAMES[options.engine]} with {options.archive} ...", flush=True)
    tls = tls_of(options.tls_cert, options.tls_key)
    wished = {name: getattr(options, name) for name in STARTS_WITH + BATCHED_BY}
    running, process = start(**wished, tls=tls, package=compiled_for(options))
    print(report(running, options.state, options.archive, time.monotonic() - begin), flush=True)
    return running, process


def _run(options: argparse.Namespace) -> int:
    wished = {name: getattr(options, name) for name in ("state", "linger", "drain")}
    probes, say = probes_of(options.probes), partial(print, flush=True)
    return run(lambda: _start(options), probes=probes, say=say, **wished)


def _ready(options: argparse.Namespace) -> int:
    reason = ready(state=options.state)
    print(f"not ready: {reason}" if reason else "ready")
    return 1 if reason else 0


def _register(options: argparse.Namespace) -> None:
    name = register(options.archive, state=options.state, timeout=options.timeout)
    how = f"{PROGRAM} default {name}" if INSTALLED else f"make set-default VERSION={name}"
    print(f"version {name} answers beside the others; make it the default: {how}")


def _default(options: argparse.Namespace) -> None:
    set_default(options.version, state=options.state)
    print(f"version {options.version} is the default")


def _unregister(options: argparse.Namespace) -> None:
    unregister(options.version, state=options.state, drain=options.drain)
    print(f"version {options.version} is removed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help)
        told = "the server's folder (default: %(default)s)"
        added.add_argument("--state", type=Path, default=STATE, help=told)
        return added

    starts = command("start", "start the server and wait until the model answers")
    runs = command("run", "the same in the foreground, until SIGTERM; for containers")
    for each in (starts, runs):
        _add_start_options(each)
    told = "where /ready and /live are answered (default: %(default)s)"
    runs.add_argument("--probes", default=f"{HOST}:8083", metavar="HOST:PORT", help=told)
    told = "seconds that a server told to end goes on answering, not ready any more (default: %(default)g)"
    runs.add_argument("--linger", type=float, default=2.0, help=told)
    told = "seconds it then waits for answers, at most (default: %(default)g)"
    runs.add_argument("--drain", type=float, default=150.0, help=told)
    command("ready", "exit status 0 if a prediction is answered now, else 1")
    command("stop", "stop the server at once")
    command("versions", "the versions of the model that are loaded")
    registers = command("register", "load an archive's version beside the others")
    registers.add_argument("--archive", type=Path, required=True)
    registers.add_argument("--timeout", type=float, default=180.0, help="seconds until it must answer")
    command("default", "answer with this version where none is named").add_argument("version")
    unregisters = command("unregister", "remove a version once its requests are answered")
    unregisters.add_argument("version")
    unregisters.add_argument("--drain", type=float, default=150.0, help="seconds to wait for them at most")
    return parser


def _add_start_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--archive", type=Path, default=ARCHIVE)
    told = "`free`, or five numbers: REST inference, management, metrics, gRPC inference, gRPC management "
    told += f"(default: {' '.join(map(str, astuple(Ports())))})"
    add("--ports", nargs="+", metavar="PORT", help=told)
    add("--tokens", dest="with_tokens", action="store_true", help="ask for TorchServe's own tokens")
    add("--model-api", action="store_true", help="versions can be registered and removed while it runs")
    add("--batch-size", type=int, help="requests in a batch (default: 4, with a GPU 8)")
    add("--batch-delay", type=int, help="milliseconds to wait for them (default: 1)")
    told = "handler processes, which share the cores (default: 1; for each GPU 1 to 4, by cores and memory)"
    add("--workers", type=int, help=told)
    add("--timeout", type=float, default=180.0, help="seconds until the model must answer")
    told = "compile the network for this machine at the first start, and keep that (docs/files/compiled.md)"
    add("--compile", action="store_true", help=told)
    told = "for --compile: what the archive was exported from (default: that of the last run)"
    add("--checkpoint", type=Path, metavar="FILE", help=told)
    told = "the origin of a web page that may ask from a browser, such as http://localhost:3000, or * (default: none)"
    add("--cors-origin", default="", metavar="ORIGIN", help=told)
    told = "torchserve, or light: the same answers without Java (docs/servers.md) (default: %(default)s)"
    add("--engine", choices=ENGINES, default=TORCHSERVE, help=told)
    told = "address that the light server answers predictions at; whoever reaches it may ask (default: %(default)s)"
    add("--host", default=HOST, metavar="ADDRESS", help=told)
    for name, what in (("cert", "certificate"), ("key", "key")):
        add(f"--tls-{name}", type=Path, metavar="FILE", help=f"PEM of the light server's {what}")


def _do(options: argparse.Namespace) -> int:
    if getattr(options, "ports", None) is not None:
        options.ports = ports_of(options.ports)
    match options.command:
        case "start":
            _start(options)
        case "run":
            return _run(options)
        case "ready":
            return _ready(options)
        case "stop":
            print("stopped" if stop(state=options.state) else "no server was running")
        case "versions":
            print(table(state=options.state))
        case "register":
            _register(options)
        case "default":
            _default(options)
        case "unregister":
            _unregister(options)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 1 not ready or ended by itself, 2 it could not be done."""
    options = _parser().parse_args(arguments)
    try:
        return _do(options)
    except (ValueError, OSError, http.client.HTTPException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        starting = options.command in ("start", "run")
        reason = "stopped before the model was ready; nothing is left running" if starting else "interrupted"
        print(reason, file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
