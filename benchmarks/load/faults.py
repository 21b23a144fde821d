"""Faults under load, from the client's side: a worker killed or stopped, a version swapped, a proxy drained.

The clients are `client.Client` with its retries where a fault must not be seen (a worker that dies), and without any
where the server itself promises that no request fails (a swap of versions, a drain).
"""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.load.sections import Numbers, shown_errors
from benchmarks.load.server import Served, pack
from benchmarks.load.setting import LoadSetting, say
from benchmarks.tables import table
from client import Client, Retries

CLIENTS = 4
RESPONSE_TIMEOUT = 5
"""Seconds after which a worker that does not answer is ended: small, so that a stopped one is found soon."""
PATIENCE = 90.0
"""Seconds that a fault may take to pass."""
RELOADS = 3
"""Of the proxy."""
CALM = 1.0
"""Seconds of load before and after a fault."""


@dataclass
class Traffic:
    """Clients that ask one after the other until the end: when each request began and ended, and what went wrong."""

    requests: list[tuple[float, float, str]] = field(default_factory=list)

    @property
    def lost(self) -> dict[str, int]:
        """Requests that were not answered at last, by what was raised or said."""
        return dict(Counter(what for _, _, what in self.requests if what))

    def answered_after(self, moment: float) -> float | None:
        """When the first request that began after a moment was answered; None where none was yet."""
        return min((end for begin, end, what in self.requests if not what and begin > moment), default=None)

    def slowest(self) -> float:
        """Seconds of the slowest request that was answered."""
        return max((end - begin for begin, end, what in self.requests if not what), default=0.0)


@contextlib.contextmanager
def traffic(ask: Callable[[], object]) -> Iterator[Traffic]:
    """Load from entering to leaving; `ask` sends one request and raises where it is not answered as it should be."""
    over = threading.Event()
    made = Traffic()

    def work() -> None:
        while not over.is_set():
            begin = time.monotonic()
            what = ""
            try:
                ask()
            except Exception as error:  # any failure is what is counted here
                what = f"{type(error).__name__}: {error}"[:200]
            made.requests.append((begin, time.monotonic(), what))
            if what:
                time.sleep(0.05)

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(CALM)
        yield made
        time.sleep(CALM)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def strike(served: Served, made: Traffic, how: signal.Signals) -> dict[str, float]:
    """Sends the worker a signal and waits until requests are answered again.

    "recovery": seconds until a request that was sent afterwards was answered by a new worker.

    Raises ValueError: not within PATIENCE.
    """
    before = served.kill_worker(how)
    moment = time.monotonic()
    while time.monotonic() - moment < PATIENCE:
        time.sleep(0.1)
        worker = served.worker()
        if worker is not None and worker.pid != before:
            renewed = time.monotonic()
            while time.monotonic() - moment < PATIENCE:
                answered = made.answered_after(moment)
                if answered is not None and answered > renewed:
                    return {"recovery": answered - moment}
                time.sleep(0.05)
    logs = served.state / "logs"
    raise ValueError(f"{PATIENCE:.0f} s after {how.name} no request is answered; logs: {logs}")


def patient(url: str) -> Client:
    """A client as a user has it: its own retries."""
    return Client(url, token="", timeout=60, deadline=120, connections=CLIENTS)


def impatient(url: str, token: str = "") -> Client:
    """A client that asks once."""
    return Client(url, token=token, timeout=60, retries=Retries(attempts=1), connections=CLIENTS)


def faults_numbers(setting: LoadSetting) -> Numbers:
    """Every fault, on a server of its own where that is needed."""
    image = Path(setting.images[0]).read_bytes()
    rows: list[Numbers] = []
    network = setting.tiny
    with setting.served(network, "faults", changes={"responseTimeout": RESPONSE_TIMEOUT}) as served:
        for protocol, url in (("REST", served.url), ("gRPC", f"grpc://127.0.0.1:{served.ports.grpc}")):
            for how in (signal.SIGKILL, signal.SIGSTOP):
                say(f"faults: {how.name} of the worker, {protocol}")
                with patient(url) as client, traffic(partial(client.predict, image)) as made:
                    found = strike(served, made, how)
                rows.append(_row(f"{how.name} of the worker, {protocol}, with retries", made, **found))
    with setting.served(network, "swap", model_api=True) as served:
        say("faults: hot swap")
        rows.append(swap(served, pack(network.path, setting.folder / "swap" / "next", version="2.0"), image))
    if nginx_there():
        with setting.served(network, "drain") as served:
            say("faults: drain through the proxy")
            rows.append(drain(served, image))
    return {"clients": CLIENTS, "response_timeout": RESPONSE_TIMEOUT, "rows": rows}


def swap(served: Served, archive: Path, image: bytes) -> Numbers:
    """Version 2.0 registered, made the default, 1.0 removed, while clients ask that try once."""
    from server.versions import register, set_default, unregister

    versions: set[str] = set()

    def ask() -> None:
        versions.add(client.predict(image).model_version)

    with impatient(served.url) as client:
        with traffic(ask) as made:
            begin = time.monotonic()
            name = register(archive, state=served.state)
            set_default(name, state=served.state)
            unregister("1.0", state=served.state)
            seconds = time.monotonic() - begin
        if versions != {"1.0", "2.0"}:
            seen = sorted(versions)
            raise ValueError(f"the versions that answered are {seen}; 1.0 and then 2.0 were expected")
    return _row("register 2.0, default 2.0, unregister 1.0, REST, no retries", made, took=seconds)


def drain(served: Served, image: bytes) -> Numbers:
    """nginx told to reload, a few times, while clients ask through it that try once."""
    from tests.served.nginx import SECRET, proxy

    behind = f"127.0.0.1:{served.ports.inference}"
    with proxy(INFERENCE=behind, READINESS=behind) as front:
        url = f"http://127.0.0.1:{front.port}"
        with impatient(url, SECRET) as client, traffic(partial(client.predict, image)) as made:
            begin = time.monotonic()
            for _ in range(RELOADS):
                old = front.workers()
                assert front.process is not None
                front.process.send_signal(signal.SIGHUP)
                while front.workers() & old and time.monotonic() - begin < PATIENCE:
                    time.sleep(0.05)
            seconds = time.monotonic() - begin
    return _row(f"proxy reloaded {RELOADS} times, old workers drained, REST, no retries", made, took=seconds)


def nginx_there() -> bool:
    """Whether the drain can be tried: nginx on the path or as `make tools` fetches it."""
    fetched = ROOT / "build" / "tools" / "nginx" / "sbin" / "nginx"
    return shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") is not None or fetched.is_file()


def faults_text(numbers: Numbers) -> str:
    """A row for each fault."""
    rows = []
    for row in numbers["rows"]:
        seconds = [_seconds(row.get(name)) for name in ("recovery", "took", "slowest")]
        rows.append((row["fault"], str(row["requests"]), shown_errors(row["lost"]), *seconds))
    headers = ("fault", "requests", "lost", "answered again after", "took", "slowest request")
    return (
        table(headers, rows)
        + f"\nThe tiny network, {numbers['clients']} clients of client/ one request after the other; responseTimeout "
        f"{numbers['response_timeout']} s, after which a stopped worker is ended. A new worker loads the model: "
        "that is most of the time to recovery.\n"
    )


def _row(fault: str, made: Traffic, **found: Any) -> Numbers:
    seen = {"requests": len(made.requests), "lost": made.lost, "slowest": made.slowest()}
    return {"fault": fault, **seen, **found}


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
