"""Hundreds of malformed and hostile requests against the real TorchServe: each refused, and nobody else harmed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.load.hostile import offline_answers, valid_cases
from server.processes import ENGINES
from tests.hostile.case import ANSWERED, AS_PILLOW, BY_SERVER, REFUSED, Case, http
from tests.hostile.images import encoded
from tests.hostile.judge import (
    Offline,
    Seen,
    all_cases,
    cases_for,
    channel_to,
    judge,
    run,
    send,
    send_by_grpc,
)
from tests.served.machine import Machine
from tests.served.nginx import SECRET, proxy

CASES = [case for case in all_cases() if not case.large]
OVER_GRPC = 120
"""Of the requests that have a counterpart there, evenly chosen."""


@pytest.fixture(scope="module")
def offline(standin: Path) -> Offline:
    return offline_answers(standin)


def test_there_are_at_least_400_hostile_requests_of_every_kind() -> None:
    assert len(CASES) >= 400
    expected = [case.expect for case in CASES]
    assert expected.count(REFUSED) > 200 and expected.count(AS_PILLOW) > 200
    assert len({case.group for case in CASES}) >= 20
    assert len([case for case in CASES if case.entries is not None]) > 300


@pytest.mark.engines(*ENGINES)
def test_every_hostile_request_is_answered_as_it_should_be_and_the_valid_ones_between_as_ever(
    server: Machine, offline: Offline
) -> None:
    worker = server.worker().pid
    cases = cases_for(server.running.engine, CASES)
    outcome = run(cases, lambda case: send(case, server.ports.inference), offline, valid_cases())
    assert outcome.wrong == []
    assert len(outcome.rows) == len(CASES) and outcome.valid >= len(CASES) // 5
    assert server.worker().pid == worker


@pytest.mark.engines(*ENGINES)
def test_over_grpc_they_are_refused_with_the_same_errors(server: Machine, offline: Offline) -> None:
    worker = server.worker().pid
    cases = [case for case in CASES if case.entries is not None]
    cases = cases[:: len(cases) // OVER_GRPC]
    channel = channel_to(server.ports.grpc)
    try:
        outcome = run(cases, lambda case: send_by_grpc(case, channel), offline, valid_cases())
    finally:
        channel.close()
    assert outcome.wrong == []
    assert server.worker().pid == worker


def test_a_bit_that_is_turned_over_costs_the_request_or_changes_the_answer_as_offline(
    offline: Offline,
) -> None:
    """Else the test above could compare refusals alone."""
    statuses = [offline(case.image)[0] for case in CASES if case.group == "bits flipped"]
    assert statuses.count(200) > 10 and statuses.count(400) > 10


def test_behind_the_proxy_whatever_is_not_answered_is_refused_in_the_same_form(
    server: Machine, offline: Offline
) -> None:
    """What TorchServe answers in a form of its own, too; the proxy hangs up on nobody but who speaks no HTTP."""
    inference = f"127.0.0.1:{server.ports.inference}"
    with proxy(INFERENCE=inference, READINESS=inference, MAX_BODY="33554432") as front:
        odd = {}
        for case in CASES:
            if case.expect == BY_SERVER and not case.wire.startswith(b"HEAD "):
                head, _, rest = case.wire.partition(b"\r\n")
                wire = head + b"\r\nAuthorization: Bearer " + SECRET.encode() + b"\r\n" + rest
                seen = send(replace(case, wire=wire), front.port)
                hung_up = seen.status == 0 and case.group == "broken HTTP"
                if seen.status != 200 and not hung_up and not has_the_handlers_form(seen):
                    odd[f"{case.group}: {case.name}"] = (seen.status, seen.body[:100])
        assert odd == {}
    assert json.loads(send(valid_cases()[0], server.ports.inference).body)["detections"] != []


def has_the_handlers_form(seen: Seen) -> bool:
    """Whether an answer is an error in the handler's form with its own status, from 400 on."""
    try:
        error = json.loads(seen.body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return seen.status >= 400 and set(error) == {"code", "type", "message"} and error["code"] == seen.status


def case_of(expect: str, image: bytes = b"", statuses: tuple[int, ...] = ()) -> Case:
    return Case(group="g", name="n", expect=expect, wire=http(image), image=image, statuses=statuses)


@pytest.mark.parametrize(
    ("case", "status", "body"),
    [
        (case_of(REFUSED), 200, b"{}"),
        (case_of(REFUSED), 500, b'{"error":{"code":500,"type":"InternalError","message":"m"}}'),
        (case_of(REFUSED), 400, b'{"code":400,"type":"InvalidRequest","message":"m"}'),
        (case_of(REFUSED), 400, b'{"error":{"code":400,"type":"InternalError","message":"m"}}'),
        (case_of(REFUSED), 400, b'{"error":{"code":400,"type":"InvalidImage","message":""}}'),
        (case_of(REFUSED), 400, b'{"error":{"code":400,"type":"InvalidImage","message":"a\\nb"}}'),
        (case_of(BY_SERVER, statuses=(404,)), 200, b""),
        (
            case_of(AS_PILLOW, encoded("png")),
            400,
            b'{"error":{"code":400,"type":"InvalidImage","message":"m"}}',
        ),
        (case_of(ANSWERED, encoded("png")), 200, b"{}"),
        (case_of(ANSWERED, b"no image"), 400, b""),
        (case_of(BY_SERVER, statuses=(404,)), -1, b""),
    ],
)
def test_an_answer_that_is_not_as_it_should_be_is_found_wrong(
    offline: Offline, case: Case, status: int, body: bytes
) -> None:
    assert judge(case, Seen(status=status, body=body, seconds=0.1), offline) != ""
