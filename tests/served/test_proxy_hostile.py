"""What hostile clients try: the proxy lets none of it through to the server behind it, and stays up for the others."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.served.nginx import HEAD, SECRET, Proxy, Reply, proxy, until_closed, wait_until
from tests.served.upstream import Answer, Upstream

REST = f"Host: x\r\nAuthorization: Bearer {SECRET}\r\nConnection: close\r\n".encode()
PATIENCE = 30.0
"""Seconds after which a wait is a failure; the proxy's own limits are 1 second here."""


@pytest.fixture(scope="module")
def front(behind: Upstream) -> Iterator[Proxy]:
    short = dict.fromkeys(("HEADER_TIMEOUT", "BODY_TIMEOUT", "SEND_TIMEOUT", "IDLE_TIMEOUT"), "1s")
    with proxy(INFERENCE=behind.address, READINESS=behind.address, CONNECTIONS="8", **short) as made:
        yield made


@pytest.fixture(scope="module")
def patient(behind: Upstream) -> Iterator[Proxy]:
    """One that waits longer than any test takes."""
    with proxy(
        INFERENCE=behind.address, READINESS=behind.address, BODY_TIMEOUT="300s", CONNECTIONS="8"
    ) as made:
        yield made


@pytest.fixture(autouse=True)
def unharmed(front: Proxy, behind: Upstream, fresh: None) -> Iterator[None]:
    """After every attack the same worker processes answer a valid request."""
    workers = front.workers()
    yield
    behind.answer = lambda _: Answer()
    assert front.ask(body=b"valid").status == 200 and behind.seen[-1].body == b"valid"
    assert front.workers() == workers


def status_of(answer: bytes) -> int:
    """The status of the first answer among the bytes."""
    assert answer.startswith(b"HTTP/1."), answer
    return int(answer.split(b" ", 2)[1])


def closed_while_dripping(connection: socket.socket, drip: bytes) -> bytes:
    """What was answered when the proxy closed, while a byte was sent every 0.1 s."""
    connection.settimeout(0.1)
    received = b""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            connection.sendall(drip)
            part = connection.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            return received
        if not part:
            return received
        received += part
    raise AssertionError(f"still open after {PATIENCE} s")


def test_a_header_that_never_ends_is_closed_however_steadily_it_drips(front: Proxy, behind: Upstream) -> None:
    with socket.create_connection(("127.0.0.1", front.port)) as connection:
        connection.sendall(HEAD.encode() + b"X-Slow: ")
        assert closed_while_dripping(connection, b"a") == b""
    assert behind.seen == []


@pytest.mark.parametrize("sent", [b"", b"POST", HEAD.encode()])
def test_a_connection_that_says_nothing_more_is_closed(front: Proxy, sent: bytes) -> None:
    assert front.raw(sent, patience=PATIENCE) == b""


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_body_that_stops_never_reaches_torchserve(front: Proxy, behind: Upstream, framing: str) -> None:
    assert front.raw(f"{HEAD}{framing}\r\n\r\n100\r\nabc".encode(), patience=PATIENCE) == b""
    assert behind.seen == []


def test_a_slow_body_takes_no_connection_to_torchserve_until_it_is_whole(
    patient: Proxy, behind: Upstream
) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", patient.port))) for _ in range(4)]
        for connection in slow:
            connection.settimeout(PATIENCE)
            connection.sendall(f"{HEAD}Content-Length: 6\r\nConnection: close\r\n\r\n".encode())
        for letter in b"slowly":
            for connection in slow:
                connection.sendall(bytes([letter]))
            assert letter == ord("y") or not [seen for seen in behind.seen if seen.body != b"valid"]
            assert patient.ask(body=b"valid").status == 200  # others are served meanwhile
        assert [status_of(until_closed(connection)) for connection in slow] == [200] * 4
    assert [seen.body for seen in behind.seen].count(b"slowly") == 4


def test_a_client_that_does_not_read_its_answer_is_dropped(front: Proxy, behind: Upstream) -> None:
    """The whole answer was taken from the server long before."""

    def cut_short(entry: dict[str, Any]) -> bool:
        whole = entry["upstream_status"] == "200" and entry["seconds"] >= 1
        return whole and 0 < entry["bytes_out"] < 40_000_000

    behind.answer = lambda _: Answer(body=bytes(40_000_000))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", front.port))
        connection.sendall(f"{HEAD}Content-Length: 1\r\n\r\nx".encode())
        wait_until(lambda: any(cut_short(entry) for entry in front.log()), PATIENCE)


def test_40_megabytes_are_413_before_they_are_sent(front: Proxy, behind: Upstream) -> None:
    with socket.create_connection(("127.0.0.1", front.port), timeout=PATIENCE) as connection:
        connection.sendall(f"{HEAD}Content-Length: 40000000\r\nExpect: 100-continue\r\n\r\n".encode())
        assert status_of(connection.recv(65536)) == 413
    reply = front.ask(body=bytes(40_000_000))
    assert (reply.status, reply.error()["type"]) == (413, "RequestTooLarge") and behind.seen == []


def test_a_body_of_the_full_size_passes(front: Proxy, behind: Upstream) -> None:
    assert front.ask(body=bytes(33_554_432)).status == 200 and len(behind.seen[0].body) == 33_554_432


def test_one_address_has_so_many_requests_at_once_and_no_more(patient: Proxy) -> None:
    with ExitStack() as stack:
        for _ in range(8):
            open_ = stack.enter_context(socket.create_connection(("127.0.0.1", patient.port)))
            open_.sendall(f"{HEAD}Content-Length: 2\r\n\r\nx".encode())
        end = time.monotonic() + PATIENCE
        reply: Reply = patient.ask(body=b"ninth")
        while reply.status == 200 and time.monotonic() < end:  # nginx has not read all eight heads yet
            reply = patient.ask(body=b"ninth")
        assert (reply.status, reply.error()["type"]) == (429, "TooManyRequests")


def test_hundreds_of_idle_connections_keep_nobody_else_out(front: Proxy) -> None:
    with ExitStack() as stack:
        for i in range(400):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", front.port), timeout=PATIENCE))
            idle.sendall(HEAD.encode()[: i % 40])
            if i % 100 == 99:
                assert front.ask().status == 200


SMUGGLED = b"POST /models HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("framing", "status"),
    [
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 60\r\n\r\n0\r\n\r\n", 400),
        (b"Content-Length: 3\r\nContent-Length: 60\r\n\r\nabc", 400),
        (b"Content-Length: 3, 60\r\n\r\nabc", 400),
        (b"Content-Length: +3\r\n\r\nabc", 400),
        (b"Content-Length: -1\r\n\r\nabc", 400),
        (b"Content-Length: 0x3\r\n\r\nabc", 400),
        (b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 501),
        (b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
        (b"X: a\x00b\r\n\r\n", 400),
    ],
)
def test_a_body_with_two_readings_is_refused_and_its_rest_is_no_request(
    front: Proxy, behind: Upstream, framing: bytes, status: int
) -> None:
    answer = front.raw(HEAD.encode() + framing + SMUGGLED, patience=PATIENCE)
    assert status_of(answer) == status and answer.count(b"HTTP/1.1 ") == 1
    assert b'{"error":{"code":%d,' % status in answer and behind.seen == []


@pytest.mark.parametrize(
    "odd",
    [
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding\x0b: chunked",
        b"Transfer_Encoding: chunked",
        b" Transfer-Encoding: chunked",
    ],
)
def test_an_oddly_written_transfer_encoding_is_none_for_torchserve_either(
    front: Proxy, behind: Upstream, odd: bytes
) -> None:
    """Where nginx reads the length, the server behind it must not read chunks: what arrives is framed anew."""
    rest = b"\r\nContent-Length: 5\r\nConnection: close\r\n\r\n0\r\n\r\n"
    front.raw(HEAD.encode() + odd + rest, patience=PATIENCE)
    for seen in behind.seen:
        assert seen.body == b"0\r\n\r\n" and "transfer-encoding" not in seen.headers


@pytest.mark.parametrize(
    "first_line",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET",
        b"\x00\x01\x02",
        b"POST /predictions/maskx",
        b"POST /predictions/maskx HTTP/9.9",
        b"POST /predictions/maskx HTTP/1.1 x",
        b"POST http:/// HTTP/1.1",
        "POST /predictions/mäskx HTTP/1.1".encode(),
        b"POST /predictions/maskx%zz HTTP/1.1",
        b"POST /predictions/maskx%00 HTTP/1.1",
        b"CONNECT 127.0.0.1:8081 HTTP/1.1",
        b"PRI * HTTP/2.0",
    ],
)
def test_what_is_no_request_gets_an_error_or_is_closed(
    front: Proxy, behind: Upstream, first_line: bytes
) -> None:
    answer = front.raw(first_line + b"\r\n" + REST + b"\r\n", patience=PATIENCE)
    assert behind.seen == []
    assert answer == b"" or (b'{"error":{"code":' in answer and b"<html>" not in answer)


TRICKS = r"""
//models ///models/maskx //predictions/maskx /predictions//maskx /predictions/../models
/predictions/maskx/../../models/maskx /predictions/maskx/%2e%2e/%2e%2e/models
/predictions/..%2fmodels /predictions/..%2f..%2fmodels /predictions/%2e%2e%2fmodels
/predictions/maskx%2f..%2f..%2fmodels /predictions/maskx%252f..%252fmodels
/predictions/maskx%3f/models /predictions/maskx%23/models /predictions/maskx%0d%0aX:%20y
/predictions/maskx\..\models /predictions/%5c..%5cmodels /predictions/. /predictions/..
/predictions/%2e%2e /./models /%6dodels/maskx /MODELS /Predictions/maskx /v1/models/maskx
/v1/models/../../models/x:predict /v1/models/a%2f..%2f..%2f..%2fmodels%2fx:predict
/v1/models/maskx:predict/../../../models /v2/models/maskx/infer/../../../../models
/v2/models/..%2f..%2fmodels/infer /v2/repository/index /ready/../models /ready%2f..%2fmodels /ready/
/org.pytorch.serve.grpc.inference.InferenceAPIsService/../models http://127.0.0.1:8081/models
"""


@pytest.mark.parametrize("path", TRICKS.split())
def test_no_trick_with_the_path_reaches_anything_but_predictions(
    front: Proxy, behind: Upstream, path: str
) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        first_line = f"{method} {path} HTTP/1.1\r\n".encode()
        answer = front.raw(first_line + REST + b"Content-Length: 0\r\n\r\n", patience=PATIENCE)
        if method == "GET" and path in ("/predictions/..", "/predictions/%2e%2e"):  # another way to write /
            assert status_of(answer) == 200 and b"text/html" in answer
            continue
        assert status_of(answer) in (400, 404) and b'{"error":{"code":4' in answer
    assert behind.seen == []


def test_a_path_that_is_another_way_to_write_a_prediction_arrives_in_its_plain_form(
    front: Proxy, behind: Upstream
) -> None:
    for path in (
        "/x/../predictions/maskx",
        "/predictions/%6daskx",
        "/predictions/x;/../maskx",
        "/./%70redictions/mask%78",
    ):
        assert front.ask(path=path).status == 200, path
    assert {seen.path for seen in behind.seen} == {"/predictions/maskx"}


@pytest.mark.parametrize(
    "name", ["X-Odd", "score_threshold", "Content-Type", "X-Request-Id", "traceparent", "Accept"]
)
@pytest.mark.parametrize(
    "value", ["\u00e9\u4e2d".encode(), b"a\tb", b"\x7f", b"\x80\xff", b"'\"\\<>{}$(id)", b"%0d%0aX: y"]
)
def test_odd_header_values_harm_nothing_and_every_line_of_the_log_stays_json(
    front: Proxy, behind: Upstream, name: str, value: bytes
) -> None:
    rest = b"\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    answer = front.raw(f"{HEAD}{name}: ".encode() + value + rest, patience=PATIENCE)
    assert status_of(answer) in (200, 400)
    assert name != "X-Request-Id" or value not in answer
    assert front.log()
