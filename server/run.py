"""A server in the foreground, for containers: supervised, with a readiness endpoint, and drained before it ends."""

from __future__ import annotations

import http.client
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil

from server.drain import wait_until_idle, wait_until_sent
from server.life import stop
from server.management import Management
from server.processes import Running
from server.readiness import Readiness, Watch, endpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Asked(BaseException):
    """To end, while the model still loads; no `Exception`, so that nothing takes it for a mistake."""


def run(
    begin: Callable[[], tuple[Running, psutil.Popen]],
    *,
    state: Path,
    probes: tuple[str, int],
    linger: float,
    drain: float,
    say: Callable[[str], None],
) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status: 0 told to end, 1 TorchServe ended by itself, or
    requests were left without an answer.

    Told to end, it is first not ready for `linger` seconds, in which balancers take notice and requests are answered as
    ever; then it waits until all that were sent are answered, `drain` seconds at most; then it stops TorchServe. A
    second signal ends the waiting.

    Args:
        begin: starts the server and returns when it answers, see `start_process`.
        state: its folder.
        probes: host and port of the readiness endpoint.
        linger, drain: seconds.
        say: gets every line for the log.

    Raises:
        ValueError: the server cannot be started, or the endpoint's address not be had.
    """
    watch = Watch()
    status = 0
    with endpoint(probes, watch.health) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        before = {number: signal.getsignal(number) for number in SIGNALS}
        told = _Told()
        for number in SIGNALS:
            signal.signal(number, told)
        try:
            running, process = begin()
            told.loading = False
            watch.begin(Readiness(Management(state, running, timeout=5.0)))
            say(f"ready; probes on http://{probes[0]}:{listener.server_address[1]}/ready and /live")
            if not _serve(told, process):
                say(f"error: TorchServe ended by itself (logs: {state / 'logs'})")
                return 1
            watch.withdraw("the server is to end")
            say(f"told to end: not ready; goes on answering for {linger:g} s")
            server = Management(state, running)
            outcome = _drain(server, running, process, told, linger=linger, drain=drain)
            say(outcome)
            status = int(outcome.startswith("error"))
        except Asked:
            say("told to end before the model was ready")
        finally:
            watch.withdraw("the server has ended")
            stop(state=state)
            for number, handler in before.items():
                signal.signal(number, handler)
            listener.shutdown()
    say("stopped")
    return status


class _Told:
    """Handler of the signals: counts them; while the model loads, the first one breaks off.

    It sets no Event: a handler runs in the middle of the main thread, which may hold that Event's lock.
    """

    def __init__(self) -> None:
        self.loading = True
        self.times = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.times += 1
        if self.loading:
            self.loading = False  # the clean-up is not broken off in turn
            raise Asked


def _serve(told: _Told, process: psutil.Popen) -> bool:
    """Until a signal comes; False where TorchServe ends before."""
    while told.times == 0:
        if process.poll() is not None:
            return False
        time.sleep(0.1)
    return True


def _drain(
    server: Management, running: Running, process: psutil.Popen, told: _Told, *, linger: float, drain: float
) -> str:
    """Lingers and drains; returns what came of it, beginning with `error` where requests are left."""
    lingered = time.monotonic() + linger
    while time.monotonic() < lingered and told.times < 2:
        time.sleep(0.1)
    idle: list[bool] = []
    waiting = threading.Thread(
        target=lambda: idle.append(_all_idle(server, drain) and wait_until_sent(running.ports, seconds=5.0)),
        daemon=True,
    )
    waiting.start()
    while waiting.is_alive():
        if told.times >= 2:
            return "told again: stops at once"
        if process.poll() is not None:
            return "error: TorchServe ended by itself"
        waiting.join(0.1)
    return "every request is answered" if idle == [True] else f"error: requests are left after {drain:g} s"


def _all_idle(server: Management, seconds: float) -> bool:
    """Waits for every version; False where one has requests left, or nobody says which versions there are."""
    deadline = time.monotonic() + seconds
    try:
        versions = server.versions()
    except (OSError, http.client.HTTPException, ValueError):
        return False
    return all(wait_until_idle(server, one.name, seconds=deadline - time.monotonic()) for one in versions)
