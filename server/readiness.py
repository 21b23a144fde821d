"""Readiness and liveness of a server, looked at once a second, and the small HTTP endpoint that tells them.

Ready means: the default version has a worker that TorchServe calls READY, whose process is neither dead nor stopped,
and that has answered something within ANSWER_WITHIN seconds. Under load the metrics of answers show that; only a
server with nothing to do is sent a describe call, since that would stand in the queue behind all requests. So
saturation changes nothing, and a worker that hangs without being stopped is found out too.
"""

import http.client
import http.server
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .management import Management, Version, none_ready

EVERY = 1.0
"""Seconds between two looks."""
ANSWER_WITHIN = 60.0
"""Seconds within which a worker must have answered something: longer than any batch, shorter than responseTimeout."""
DEAD_FOR = 600.0
"""Seconds without a ready worker after which the server is given up: TorchServe tries to restart one for 300."""
SILENT_FOR = 60.0
"""Seconds without an answer of Java itself after which the server is given up."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """Why the server is not ready, or not alive; '' where it is."""

    not_ready: str
    dead: str = ""


class Readiness:
    """What is known of one server, kept up to date by `look`; `health` may be asked by any thread."""

    def __init__(
        self,
        server: Management,
        *,
        clock: Callable[[], float] = time.monotonic,
        answer_within: float = ANSWER_WITHIN,
    ) -> None:
        """The server must just have answered a prediction."""
        self._server = server
        self._clock = clock
        self._answer_within = answer_within
        now = clock()
        self._java_seen = self._worker_seen = self._answer_seen = now
        self._counters: str | None = None
        self._version = ""
        self._pids: frozenset[int] = frozenset()
        self._describing: threading.Thread | None = None
        self._described = False
        self.health = Health(not_ready="not looked at yet")

    def look(self) -> None:
        """One look; costs two small requests that Java answers alone."""
        now = self._clock()
        try:
            version = self._server.default()
            counters = self._server.answered()
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"TorchServe does not answer: {type(error).__name__}: {error}"
            self.health = Health(not_ready=reason, dead=reason if now - self._java_seen > SILENT_FOR else "")
            return
        self._java_seen = now
        living = frozenset(worker.pid for worker in version.workers if worker.lives())
        if not living:
            reason = none_ready(version.workers)
            self._pids = frozenset()
            self.health = Health(not_ready=reason, dead=reason if now - self._worker_seen > DEAD_FOR else "")
            return
        self._worker_seen = now
        self._note_answers(version, living, counters, now)
        self.health = Health(not_ready=self._no_answer(now))

    def _note_answers(self, version: Version, living: frozenset[int], counters: str, now: float) -> None:
        """Takes note of what was answered since the last look, and asks where nothing was."""
        answered = self._described or (self._counters is not None and counters != self._counters)
        self._described, self._counters = False, counters
        if version.name != self._version:
            # A version becomes the default after its worker has answered (server.versions): it begins as ready.
            self._version, answered = version.name, True
        elif not living & self._pids:
            # A worker in place of one that died has shown nothing yet, whatever its forerunner had answered.
            self._answer_seen, answered = float("-inf"), False
        self._pids = living
        if answered:
            self._answer_seen = now
        elif self._describing is None or not self._describing.is_alive():
            self._describing = threading.Thread(target=self._describe, args=(version.name,), daemon=True)
            self._describing.start()

    def _describe(self, version: str) -> None:
        """Sends the describe call; it waits for as long as the server lets it, and there is never a second one."""
        try:
            self._server.worker_answers(version, timeout=600.0)
        except (OSError, http.client.HTTPException, ValueError):
            return  # the worker died over it, or the queue is full: the next look asks again
        self._described = True

    def _no_answer(self, now: float) -> str:
        if self._answer_seen == float("-inf"):
            return "a new worker has not answered yet"
        silence = now - self._answer_seen
        return f"no worker has answered for {silence:.0f} s" if silence > self._answer_within else ""


class Watch(threading.Thread):
    """Looks once a second until it is ended; `health` is what the endpoint tells."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._readiness: Readiness | None = None
        self._override = "the model is loading"
        self._end = threading.Event()

    def health(self) -> Health:
        """What was found last; while the model loads and once the server is to end, not ready, but alive."""
        if self._override or self._readiness is None:
            return Health(not_ready=self._override)
        return self._readiness.health

    def begin(self, readiness: Readiness) -> None:
        """The model answers; from now on it is looked at."""
        readiness.look()
        self._readiness = readiness
        self._override = ""
        self.start()

    def withdraw(self, reason: str) -> None:
        """Not ready from now on, whatever is found."""
        self._override = reason
        self._end.set()

    def run(self) -> None:
        """The thread."""
        while self._readiness is not None and not self._end.wait(EVERY):
            self._readiness.look()


def endpoint(address: tuple[str, int], health: Callable[[], Health]) -> http.server.ThreadingHTTPServer:
    """An HTTP server with GET /ready and /live, 200 or 503 with the reason in JSON; bound, and not yet serving.

    Raises ValueError: the address cannot be had.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        """Answers from what is known; asks nobody."""

        timeout = 5.0
        server_version, sys_version = "maskx", ""

        def do_GET(self) -> None:
            """GET, and HEAD without the body."""
            found = health()
            reasons = {"/ready": found.not_ready, "/live": found.dead}
            path = self.path.partition("?")[0]
            if path not in reasons:
                self._answer(404, {"reason": "known are /ready and /live"})
                return
            reason, name = reasons[path], path.removeprefix("/")
            self._answer(503 if reason else 200, {name: not reason} | ({"reason": reason} if reason else {}))

        do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

        def _answer(self, status: int, content: dict[str, object]) -> None:
            body = json.dumps(content).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Probes come every few seconds; nothing is written of them."""

    try:
        server = http.server.ThreadingHTTPServer(address, Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--probes {address[0]}:{address[1]} cannot be listened on: {error}. Name another: --probes HOST:PORT"
        ) from error
    server.daemon_threads = True
    return server
