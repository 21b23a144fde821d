"""Every hostile request, sending them, and judging the answers.

`all_cases` lists them, the same ones every time. Each is sent over a connection of its own, and judged against what the
case expects; valid requests are sent between them, whose answers must be the offline network's.
"""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import grpc

from benchmarks.load.client import GRPC_OPTIONS, HOST
from server.processes import LIGHT
from tests.hostile import http as hostile_http
from tests.hostile import images as hostile_images
from tests.hostile import values as hostile_values
from tests.hostile.case import ANSWERED, AS_PILLOW, BY_SERVER, HUNG_UP, Case

LIMIT = 20.0
"""Seconds that an answer may take; then it counts as none."""
TIMED_OUT, HUNG_UP_ON = -1, 0
"""In place of a status: no answer within the limit, and a connection closed without one."""

Offline = Callable[[bytes], tuple[int, bytes]]
"""Status and body that the handler gives to an image without a server."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What came back, and after how many seconds. `status` over gRPC is 200, or the code in the error's text."""

    status: int
    body: bytes
    seconds: float


@dataclass(kw_only=True)
class Outcome:
    """`rows`: of every case what was seen and what is wrong with it ("" where nothing is); of the valid requests how
    many were sent and what was wrong with them."""

    rows: list[tuple[Case, Seen, str]] = field(default_factory=list)
    valid: int = 0
    valid_wrong: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """All that was not as expected, in words."""
        return [f"{case.group}: {case.name}: {why}" for case, _, why in self.rows if why] + self.valid_wrong


def all_cases() -> list[Case]:
    """All of them; every (group, name) once. Raises ValueError where two have the same."""
    cases = [*hostile_images.cases(), *hostile_values.cases(), *hostile_http.cases()]
    seen: set[tuple[str, str]] = set()
    for case in cases:
        if (case.group, case.name) in seen:
            raise ValueError(f"two hostile requests are called {case.group}: {case.name}")
        seen.add((case.group, case.name))
    return cases


def cases_for(engine: str, cases: Sequence[Case]) -> list[Case]:
    """Cases as that server is to answer them: TorchServe predicts for CONNECT too, the light server refuses it."""
    if engine != LIGHT:
        return list(cases)
    refused = partial(replace, expect=BY_SERVER, statuses=(405,))
    return [refused(case) if case.name == "CONNECT" else case for case in cases]


def send(case: Case, port: int, *, limit: float = LIMIT) -> Seen:
    """Sends the case's bytes over a connection of their own and reads one answer."""
    begin = time.perf_counter()
    status, body = TIMED_OUT, b""
    try:
        with socket.create_connection((HOST, port), timeout=limit) as connection:
            # A server that has seen enough closes before all is sent; its answer may be there all the same.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(case.wire)
            if case.expect == HUNG_UP:
                return Seen(status=HUNG_UP_ON, body=b"", seconds=time.perf_counter() - begin)
            method = "HEAD" if case.wire.startswith(b"HEAD ") else "POST"
            answer = http.client.HTTPResponse(connection, method=method)
            answer.begin()
            status, body = answer.status, answer.read()
            answer.close()
    except TimeoutError:
        status = TIMED_OUT
    except (OSError, http.client.HTTPException):
        status = HUNG_UP_ON
    return Seen(status=status, body=body, seconds=time.perf_counter() - begin)


def send_by_grpc(case: Case, channel: grpc.Channel, *, limit: float = LIMIT) -> Seen:
    """The same request as entries of the map; an error's text is the service's, too."""
    from client.generated import inference_pb2, inference_pb2_grpc

    request = inference_pb2.PredictionsRequest(model_name="maskx", input=dict(case.entries or {}))
    begin = time.perf_counter()
    try:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        body = stub.Predictions(request, timeout=limit).prediction
    except grpc.RpcError as error:
        timed_out = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        body = str(error.details()).partition("\n")[0].encode()
        status = TIMED_OUT if timed_out else 400 if error.code() == grpc.StatusCode.INVALID_ARGUMENT else 500
        return Seen(status=status, body=body, seconds=time.perf_counter() - begin)
    status = 400 if body.startswith(b'{"error":') else 200
    return Seen(status=status, body=body, seconds=time.perf_counter() - begin)


def channel_to(port: int) -> grpc.Channel:
    """A channel for `send_by_grpc`; to be closed."""
    return grpc.insecure_channel(f"{HOST}:{port}", options=GRPC_OPTIONS)


def judge(case: Case, seen: Seen, offline: Offline) -> str:
    """What is wrong with an answer, "" where nothing is."""
    if seen.status == TIMED_OUT:
        return f"no answer within {seen.seconds:.0f} s"
    if case.expect == HUNG_UP:
        return ""
    if case.expect == BY_SERVER:
        if seen.status in case.statuses:
            return ""
        return f"status {seen.status}, expected one of {case.statuses}: {seen.body[:200]!r}"
    if case.expect in (AS_PILLOW, ANSWERED):
        status, body = offline(case.image)
        if (seen.status, seen.body) == (status, body) and (status == 200 or case.expect == AS_PILLOW):
            return "" if status == 200 else _error_is_wrong(case, seen)
        return f"{seen.status} {seen.body[:200]!r}, offline {status} {body[:200]!r}"
    return _error_is_wrong(case, seen)


def _error_is_wrong(case: Case, seen: Seen) -> str:
    """Whether a refusal is 400 with the service's error, of a type that the case allows."""
    try:
        error: dict[str, Any] = json.loads(seen.body)["error"]
        code, kind, message = error["code"], error["type"], error["message"]
    except (ValueError, KeyError, TypeError):
        return f"status {seen.status} without the service's error: {seen.body[:200]!r}"
    if seen.status != 400 or code != 400 or set(error) != {"code", "type", "message"}:
        return f"status {seen.status}, error {error}"
    if kind not in case.types:
        return f"refused as {kind}, expected {' or '.join(case.types)}: {message[:200]}"
    if not message or "\n" in message or len(message) > 1_000:
        return f"the message is not one line of at most 1000 characters: {message[:200]!r}"
    return ""


def run(
    cases: Sequence[Case],
    send_one: Callable[[Case], Seen],
    offline: Offline,
    valid: Sequence[Case],
    *,
    clients: int = 3,
    every: int = 5,
) -> Outcome:
    """Sends all cases, a few at a time, and a valid request after every `every` of them."""
    outcome = Outcome()
    lock = threading.Lock()

    def one(place: int) -> None:
        case = cases[place]
        seen = send_one(case)
        why = judge(case, seen, offline)
        with lock:
            outcome.rows.append((case, seen, why))
        if place % every == 0:
            good = valid[place // every % len(valid)]
            told = judge(good, send_one(good), offline)
            with lock:
                outcome.valid += 1
                if told:
                    outcome.valid_wrong.append(f"a valid request after {case.group}: {case.name}: {told}")

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(len(cases))))
    return outcome
