"""A server in the foreground, for containers: supervised, with a readiness endpoint, and drained before it ends.

To drain is to wait until every request that was sent has been answered: before the server ends, or a version is taken
away. TorchServe does neither by itself: ended, it resets what is in flight; unregistering a version, it leaves those
who wait for it without an answer for ever.
"""

import contextlib
import http.client
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil

from .life import stop
from .management import Management, Version
from .processes import Ports, Running
from .readiness import Readiness, Watch, endpoint

REST = 1.0
"""Seconds that workers beside each other must have computed nothing, to be taken for idle."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def wait_until_idle(server: Management, name: str, *, seconds: float) -> bool:
    """Waits until no request waits for this version or is computed by it; False after `seconds` of waiting in vain.

    First the queue must be empty; then a describe call, which stands behind everything in it, must have been answered.
    One worker has then answered all. Several can overtake each other, so they must also have come to rest.
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        # a worker that dies meanwhile refuses the call, and may be back in time
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            if server.version(name).pending == 0:
                server.worker_answers(name, timeout=left)
                version = server.version(name)
                if version.pending == 0 and (len(version.workers) < 2 or _rest(version)):
                    return True
        time.sleep(0.05)
    return False


def wait_until_sent(ports: Ports, *, seconds: float) -> bool:
    """Waits until all answers have left the machine's send buffers; True at once where the system does not tell."""
    deadline = time.monotonic() + seconds
    while unsent_bytes({ports.inference, ports.grpc}) > 0:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def unsent_bytes(ports: set[int], tables: tuple[str, ...] = ("/proc/net/tcp", "/proc/net/tcp6")) -> int:
    """Bytes that Linux still holds for clients of these ports; 0 elsewhere."""
    total = 0
    for table in tables:
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, queues, *_ = line.split()
                established, close_wait = "01", "08"
                if int(local.rpartition(":")[2], 16) in ports and state in (established, close_wait):
                    total += int(queues.partition(":")[0], 16)
    return total


def _rest(version: Version) -> bool:
    """Whether the workers, looked at twice, have computed nothing in between."""
    before = _processor_time(version)
    time.sleep(REST)
    return _processor_time(version) - before < REST / 50


def _processor_time(version: Version) -> float:
    total = 0.0
    for worker in version.workers:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(worker.pid).cpu_times()
            total += times.user + times.system
    return total


class StoppedWhileLoading(BaseException):
    """A signal came before the model was ready; no `Exception`, so that nothing takes it for a mistake."""


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
        begin: starts the server and returns when it answers, see `life.start`.
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
        signals = StopSignals()
        for number in SIGNALS:
            signal.signal(number, signals)
        try:
            running, process = begin()
            signals.loading = False
            watch.begin(Readiness(Management(state, running, timeout=5.0)))
            say(f"ready; probes on http://{probes[0]}:{listener.server_address[1]}/ready and /live")
            if not _serve(signals, process):
                say(f"error: the server ended by itself (logs: {state / 'logs'})")
                return 1
            watch.withdraw("the server is to end")
            say(f"told to end: not ready; goes on answering for {linger:g} s")
            server = Management(state, running)
            outcome = _drain(server, running, process, signals, linger=linger, drain=drain)
            say(outcome)
            status = int(outcome.startswith("error"))
        except StoppedWhileLoading:
            say("told to end before the model was ready")
        finally:
            watch.withdraw("the server has ended")
            stop(state=state)
            for number, handler in before.items():
                signal.signal(number, handler)
            listener.shutdown()
    say("stopped")
    return status


class StopSignals:
    """Handler of SIGTERM and SIGINT: counts them; while the model loads, the first one breaks off.

    It sets no Event: a handler runs in the middle of the main thread, which may hold that Event's lock.
    """

    def __init__(self) -> None:
        self.loading = True
        self.count = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.loading:
            self.loading = False  # the clean-up is not broken off in turn
            raise StoppedWhileLoading


def _serve(signals: StopSignals, process: psutil.Popen) -> bool:
    """Waits for a signal; False where TorchServe ends before one comes."""
    while signals.count == 0:
        if process.poll() is not None:
            return False
        time.sleep(0.1)
    return True


def _drain(
    server: Management,
    running: Running,
    process: psutil.Popen,
    signals: StopSignals,
    *,
    linger: float,
    drain: float,
) -> str:
    """Lingers and drains; returns what came of it, beginning with `error` where requests are left."""
    lingered = time.monotonic() + linger
    while time.monotonic() < lingered and signals.count < 2:
        time.sleep(0.1)
    idle: list[bool] = []
    waiting = threading.Thread(
        target=lambda: idle.append(_all_idle(server, drain) and wait_until_sent(running.ports, seconds=5.0)),
        daemon=True,
    )
    waiting.start()
    while waiting.is_alive():
        if signals.count >= 2:
            return "told again: stops at once"
        if process.poll() is not None:
            return "error: the server ended by itself"
        waiting.join(0.1)
    return "every request is answered" if idle == [True] else f"error: requests are left after {drain:g} s"


def _all_idle(server: Management, seconds: float) -> bool:
    """Waits for every version; False where one has requests left, or nobody says which versions there are."""
    deadline = time.monotonic() + seconds
    try:
        versions = server.versions()
    except (OSError, http.client.HTTPException, ValueError):
        return False
    names = [version.name for version in versions]
    return all(wait_until_idle(server, name, seconds=deadline - time.monotonic()) for name in names)
