"""Waiting until every request that was sent has been answered: before the server ends, or a version is taken away.

TorchServe does neither by itself: ended, it resets what is in flight; unregistering a version, it leaves those who wait
for it without an answer for ever.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from pathlib import Path

import psutil

from server.management import Management, Version
from server.ports import Ports

REST = 1.0
"""Seconds that workers beside each other must have computed nothing, to be taken for idle."""


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
