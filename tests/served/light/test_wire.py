"""HTTP as it comes in: time-outs and errors of a connection, with an application of the test's own; and forms."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from server.light import rest, wire
from server.light.models import Models
from server.light.rest import Predict
from server.light.wire import SPELLED, boundary_of, fields_of, is_form, listener, run
from tests.served.nginx import until_closed

FORM = "multipart/form-data; boundary=edge"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the headers as they were spelled."""
    body = json.dumps([[name.decode(), value.decode()] for name, value in scope[SPELLED]]).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    )
    await send({"type": "http.response.body", "body": body})


@contextmanager
def listening(app: Any) -> Iterator[int]:
    """The port of a listener in a thread of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    made = listener(app, "127.0.0.1", port)
    thread = threading.Thread(target=lambda: run(made.serve()))
    thread.start()
    while not made.started:
        threading.Event().wait(0.01)
    try:
        yield port
    finally:
        made.should_exit = True
        thread.join()


def sent(port: int, data: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of what the server says before it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        head, _, body = until_closed(connection).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def test_a_head_that_is_not_sent_in_time_is_given_up_the_second_one_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "HEAD_SECONDS", 0.2)
    with listening(echo) as port:
        for begin in (b"", b"POST / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT"):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(begin)
                answer = until_closed(connection)
            assert answer.count(b"HTTP/1.1 200") == begin.count(b"\r\n\r\n"), begin
            assert b"HTTP/1.1 408" in answer and b'"type":"BadRequest"' in answer


def test_a_body_that_stops_coming_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(rest, "BODY_SECONDS", 0.2)
    models = Models(tmp_path, tmp_path, gpus=0, count=lambda version, samples: None)
    monkeypatch.setattr(models, "find", lambda name, version: None)
    predict = Predict(models, 100)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await predict({**scope, "path_params": {"model": "maskx"}}, receive, send)

    with listening(app) as port:
        status, error = sent(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
    assert (status, error["type"]) == (408, "BadRequest") and "nothing of the body came" in error["message"]


@pytest.mark.parametrize(
    ("data", "status", "kind"),
    [
        (b"hello\r\n\r\n", 400, "BadRequest"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n", 400, "BadRequest"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nx: " + b"y" * 100_000, 431, "HeadersTooLarge"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x\r\n\r\n", 501, "NotImplemented"),
    ],
)
def test_what_is_not_http_is_refused_in_the_form_of_every_other_error(
    data: bytes, status: int, kind: str
) -> None:
    with listening(echo) as port:
        seen, error = sent(port, data)
    assert (seen, error["code"], error["type"]) == (status, status, kind)


def test_headers_are_kept_as_they_were_spelled_for_every_request_of_a_connection() -> None:
    with listening(echo) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for name in ("Mask-FORMAT", "mask_format"):
            connection.request("GET", "/", headers={name: "png"})
            assert [name, "png"] in json.loads(connection.getresponse().read())
        connection.close()


def form(*parts: tuple[str, bytes], line: bytes = b"\r\n", end: bytes = b"--edge--\r\n") -> bytes:
    heads = [b'Content-Disposition: form-data; name="%s"' % name.encode() for name, _ in parts]
    return (
        b"".join(
            b"--edge" + line + head + line + line + content + line
            for head, (_, content) in zip(heads, parts, strict=True)
        )
        + end
    )


BINARY = bytes(range(256)) + b"\r\n--edg\r\n--\r\n"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (form(("data", BINARY), ("a", b"1")), {"data": BINARY, "a": b"1"}),
        (form(("data", BINARY), line=b"\n"), {"data": BINARY}),
        (form(("data", b"")), {"data": b""}),
        (form(("data", b"1"), ("data", b"2")), {"data": b"2"}),
        (form(("d\u00e4ta", b"1")), {"d\u00e4ta": b"1"}),
        (form(("data", b"1"), end=b"--edge--\r\nepilogue"), {"data": b"1"}),
        (b"before\r\n" + form(("data", b"1")), {}),
        (form(("data", b"1"), end=b""), {}),
        (form(("data", b"1"), ("more", b"2"))[:-15], {}),
        (form(("", b"1")), {}),
        (b"--edge\r\nX: y\r\n\r\n1\r\n--edge--\r\n", {}),
        (b"--edge--\r\n", {}),
        (b"", {}),
    ],
)
def test_a_form_is_taken_apart_whole_or_not_at_all(body: bytes, fields: Mapping[str, bytes]) -> None:
    assert fields_of(body, FORM) == fields


@pytest.mark.parametrize(
    ("content_type", "boundary", "taken"),
    [
        (FORM, "edge", True),
        ('multipart/form-data; charset=utf-8; BOUNDARY="an edge"', "an edge", True),
        ("multipart/form-data", "", False),
        ("multipart/form-data; boundary=", "", False),
        ("Multipart/Form-Data; boundary=edge", "edge", False),
        ("multipart/mixed; boundary=edge", "edge", False),
    ],
)
def test_what_is_a_form_is_seen_from_its_type_as_torchserve_sees_it(
    content_type: str, boundary: str, taken: bool
) -> None:
    assert (boundary_of(content_type), is_form(content_type)) == (boundary, taken)
