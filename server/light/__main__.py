"""The front: the process that listens, queues, and hands batches to its workers.

    python -m server.light --state build/serve

`server.life` starts it, after it has written what is to be served into the state folder. Told to end by SIGTERM or
SIGINT it refuses whoever comes from then on with 503, answers who came before, and ends with status 0. Its log is
logs/light.log, a JSON object a line.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..hardware import gpu_count
from ..life import LIGHT_LOG, STORE
from ..processes import Running, load_running
from ..settings import CONFIG, METRICS, MODEL
from .models import Models
from .operators import Meters, Operations, metrics_app
from .rest import inference_app
from .rpc import server
from .traces import traces_of
from .wire import Listener, listener, run

DRAIN = 150.0
"""Seconds that requests have to be answered once the server is to end."""
PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record of a log has."""


class JsonLines(logging.Formatter):
    """A record as a JSON object: time, level, event, and what was said with it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        content: dict[str, Any] = {
            "time": when,
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        content |= {name: value for name, value in vars(record).items() if name not in PLAIN}
        if record.exc_info:
            content["stack"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)


class Front:
    """All servers of the front, over the same versions."""

    def __init__(self, state: Path, running: Running) -> None:
        """Loads what is to be served. Raises ValueError: it cannot be read."""
        request_size = int(shipped("max_request_size"))
        version, ports, tls = server_version(), running.ports, running.tls_files()
        traces = traces_of(os.environ, version)
        self._meters = Meters(METRICS)
        self._models = Models(
            Path(running.temporary), state / "logs", gpus=gpu_count(), count=self._meters.count
        )
        self._models.traces = traces
        self._models.load(state / STORE / f"{MODEL}.mar", running.batching)
        operations = Operations(self._models, state / STORE, running.batching, may_change=running.model_api)
        inference = inference_app(
            self._models, self._meters, request_size, version=version, cors_origin=running.cors_origin
        )
        loopback = "127.0.0.1"
        self._listeners: list[Listener] = [
            listener(inference, running.host, ports.inference, tls=tls),
            listener(operations.app(), loopback, ports.management),
            listener(metrics_app(self._meters, self._models), loopback, ports.metrics),
        ]
        at = f"[{running.host}]" if ":" in running.host else running.host
        self._grpc, _ = server(
            self._models,
            f"{at}:{ports.grpc}",
            version=version,
            max_request_size=request_size,
            tls=tls,
        )

    async def serve(self) -> None:
        """Serves until it is told to end, then drains."""
        told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        await self._grpc.start()
        serving = [asyncio.create_task(one.serve()) for one in self._listeners]
        logging.getLogger("maskx.light").info("listening")
        ended = asyncio.create_task(told.wait())
        await asyncio.wait([ended, *serving], return_when=asyncio.FIRST_COMPLETED)
        self._models.ending = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN):
                await self._models.idle()
        for one in self._listeners:
            one.should_exit = True
        await self._grpc.stop(5.0)
        await asyncio.gather(*serving)
        await self._models.close()
        if self._models.traces is not None:
            self._models.traces.end()
        logging.getLogger("maskx.light").info("ended")


def shipped(key: str) -> str:
    """A setting of the shipped config.properties."""
    for line in CONFIG.read_text().splitlines():
        name, _, value = line.partition("=")
        if name == key:
            return value.strip()
    raise ValueError(f"{CONFIG.name} does not set {key}")


def server_version() -> str:
    """That of the installed package; of a clone, "clone"."""
    try:
        return importlib.metadata.version("maskx")
    except importlib.metadata.PackageNotFoundError:
        return "clone"


def write_log(file: Path) -> None:
    """Has everything that is said written to a file, a JSON object a line."""
    handler = logging.FileHandler(file)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


async def front(state: Path, running: Running) -> None:
    """Serves what was written into the state folder. Raises ValueError."""
    await Front(state, running).serve()


def main(arguments: Sequence[str] | None = None) -> int:
    """The process; returns its exit status: 0 told to end, 2 it cannot serve."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__.split("\n")[0])
    parser.add_argument("--state", type=Path, required=True)
    state = parser.parse_args(arguments).state
    running = load_running(state)
    try:
        if running is None:
            raise ValueError(f"nothing was prepared in {state}; start a server with python -m server")
        write_log(state / "logs" / LIGHT_LOG)
        run(front(state, running))
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
