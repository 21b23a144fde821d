"""Versions of the model side by side, and the change from one to another without a failed request.

Only with a server that was started with --model-api, on this machine, out of its own model store. `register` returns
when the new version answers; `unregister` first waits until every request sent to that version is answered.
"""

import contextlib
import http.client
import time
from pathlib import Path

from .drain import wait_until_idle
from .life import STORE, failed_loads, failure_reason, failure_reason_soon
from .management import Management, Refused
from .processes import Running, load_running
from .settings import MODEL, checked_copy, read_contents, start_command


def register(archive: Path, *, state: Path, timeout: float = 180.0) -> str:
    """Loads the archive's version beside those that answer already; returns its name. The default stays what it is.

    Where a file of the archive's name and `.sha256` lies beside it, the two must agree.

    Raises ValueError: what is wrong and what to do; the server goes on as it was.
    """
    running = _with_model_api(state)
    server = Management(state, running)
    draft = state / STORE / ".registering"
    try:
        checked_copy(archive, draft)
        name = read_contents(draft).version
        _refuse_registered(server, name, archive)
        copy = state / STORE / _file_of(name)
        draft.replace(copy)
    finally:
        draft.unlink(missing_ok=True)
    logs = state / "logs"
    before = failed_loads(logs)
    try:
        server.register(copy.name, timeout=timeout)
        _wait_for_worker(server, name, logs, before, timeout)
        server.worker_answers(name, timeout=timeout)
    except BaseException as error:
        with contextlib.suppress(OSError, http.client.HTTPException, Refused):
            server.unregister(name)
        copy.unlink()
        if isinstance(error, Refused | TimeoutError):
            reason = failure_reason(logs) or str(error)
            raise ValueError(f"version {name} cannot be served: {reason} (logs: {logs})") from error
        raise
    return name


def _wait_for_worker(server: Management, name: str, logs: Path, failed_before: int, timeout: float) -> None:
    """Returns when a worker of the version is READY. Raises TimeoutError where it is not, or failed to load."""
    deadline = time.monotonic() + timeout
    while not any(worker.lives() for worker in server.version(name).workers):
        if failed_loads(logs) > failed_before:
            raise TimeoutError(failure_reason_soon(logs) or "its worker could not load the model")
        if time.monotonic() > deadline:
            raise TimeoutError(f"its worker is not ready after {timeout:g} s")
        time.sleep(0.1)


def set_default(name: str, *, state: Path) -> None:
    """Requests that name no version are answered by this one from now on. Raises ValueError."""
    server = Management(state, _with_model_api(state))
    _require_registered(server, name)
    server.set_default(name)


def unregister(name: str, *, state: Path, drain: float = 150.0) -> None:
    """Removes a version that is not the default, once every request sent to it is answered.

    Raises ValueError: it is the default or not registered, or still had requests after `drain` seconds; it then stays.
    """
    server = Management(state, _with_model_api(state))
    _require_registered(server, name)
    if server.default().name == name:
        raise ValueError(
            f"version {name} is the default, which cannot be removed; make another one the default first, or stop the "
            "server"
        )
    if not wait_until_idle(server, name, seconds=drain):
        raise ValueError(
            f"version {name} still has requests after {drain:g} s, or its worker does not answer; it stays. Let nobody "
            "send it any, or wait for longer with --drain"
        )
    server.unregister(name)
    (state / STORE / _file_of(name)).unlink(missing_ok=True)


def table(*, state: Path) -> str:
    """A line for each version: which is the default, its workers, what waits for them, how it is batched."""
    running = _running(state)
    server = Management(state, running)
    default = server.default().name
    lines = [f"{'version':<12} {'default':<8} {'workers':<16} {'waiting':<8} batch"]
    for version in server.versions():
        workers = ", ".join(worker.trouble() or "ready" for worker in version.workers) or "none"
        mark = "yes" if version.name == default else ""
        lines.append(
            f"{version.name:<12} {mark:<8} {workers:<16} {version.pending:<8} "
            f"{version.batch_size} within {version.batch_delay} ms"
        )
    return "\n".join(lines)


def _running(state: Path) -> Running:
    running = load_running(state)
    if running is None:
        raise ValueError(f"no server was started from {state}; start one with {start_command()}")
    return running


def _with_model_api(state: Path) -> Running:
    running = _running(state)
    if not running.model_api:
        raise ValueError(
            "this server was started without --model-api, so no version can be registered or removed; start it with "
            f"{start_command('--model-api')}"
        )
    return running


def _require_registered(server: Management, name: str) -> None:
    names = [version.name for version in server.versions()]
    if name not in names:
        raise ValueError(f"version {name!r} is not registered; registered are {', '.join(names)}")


def _refuse_registered(server: Management, name: str, archive: Path) -> None:
    if name in [version.name for version in server.versions()]:
        raise ValueError(
            f"version {name} of {archive} is registered already; give the archive another version (python -m "
            "export.archive --version), or unregister that one first"
        )


def _file_of(name: str) -> str:
    return f"{MODEL}-{name}.mar"
