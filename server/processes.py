"""The processes of one server, found again by a mark in their environment, and what is known of a running one.

The mark is the state folder's path: it is inherited by Java and by every worker, it survives the death of any of
them, and no other process has it. So stopping leaves nothing behind and hurts nobody else.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from server.ports import Ports

MARK = "MASKX_SERVER_STATE"
STATE_FILE = "server.json"


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
    be registered and removed. batching: of the model, and of versions registered later.
    """

    ports: Ports
    temporary: str
    tokens: bool
    model_api: bool = False
    batching: Batching = Batching(batch_size=1, batch_delay=1, workers=1)


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
    return Running(
        ports=Ports(**content.pop("ports")), batching=Batching(**content.pop("batching")), **content
    )


def forget_running(state: Path) -> None:
    """Removes the note that a server runs."""
    (state / STATE_FILE).unlink(missing_ok=True)


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

    Raises:
        ValueError: some are still there.
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
