"""The REST client against a server of the standard library, and what errors are made of."""

import email.parser
import email.policy
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from client.errors import ServerRefused, ServerUnreachable, error_in
from client.rest import RestClient, multipart


class Echo(BaseHTTPRequestHandler):
    """Answers with what it was asked, or with `answer` where that is set."""

    answer: tuple[int, bytes] | None = None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        said = {"path": self.path, "headers": dict(self.headers), "body": body.decode("latin-1")}
        status, content = self.answer or (200, json.dumps(said).encode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_image_alone_is_the_raw_body(url: str) -> None:
    said = json.loads(RestClient(url + "/", token="secret").predict(b"\x89PNG\xff"))
    assert said["path"] == "/predictions/maskx"
    assert said["body"].encode("latin-1") == b"\x89PNG\xff"
    assert said["headers"]["Content-Type"] == "application/octet-stream"
    assert said["headers"]["Authorization"] == "Bearer secret"


def test_parameters_turn_the_body_into_a_form(url: str) -> None:
    said = json.loads(RestClient(url, model="a/b").predict(b"\r\n--\xff\x00", {"max_detections": 3}))
    assert said["path"] == "/predictions/a%2Fb"
    assert "Authorization" not in said["headers"]
    assert form_of(said["headers"]["Content-Type"], said["body"].encode("latin-1")) == {
        "max_detections": b"3",
        "data": b"\r\n--\xff\x00",
    }


def form_of(content_type: str, body: bytes) -> dict[str, bytes]:
    """A multipart form as the standard library's reader of mail sees it."""
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    message = parser.parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    parts = {}
    for part in message.iter_parts():
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        parts[str(part.get_param("name", header="content-disposition"))] = content
    return parts


def test_a_form_never_has_the_boundary_of_another() -> None:
    assert multipart(b"", {})[0] != multipart(b"", {})[0]


def test_an_error_of_the_server_is_raised_in_its_own_words(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"error":{"code":400,"type":"InvalidImage","message":"no image"}}'
    monkeypatch.setattr(Echo, "answer", (400, body))
    with pytest.raises(ServerRefused, match="400 InvalidImage: no image") as raised:
        RestClient(url).predict(b"")
    assert (raised.value.code, raised.value.kind, raised.value.message) == (400, "InvalidImage", "no image")


def test_an_error_without_words_is_raised_with_its_status(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Echo, "answer", (413, b""))
    with pytest.raises(ServerRefused, match="413 HTTP") as raised:
        RestClient(url).predict(b"")
    assert raised.value.code == 413
    assert "too large" in raised.value.message.lower()


def test_an_address_where_nobody_answers_says_how_to_start_a_server(url: str) -> None:
    with pytest.raises(ServerUnreachable, match="no server answers at http://127.0.0.1:1 .*make serve"):
        RestClient("http://127.0.0.1:1").predict(b"")


@pytest.mark.parametrize("bad", ["127.0.0.1:8080", "ftp://x", "http://", ""])
def test_an_address_that_is_no_url_is_refused_with_an_example(bad: str) -> None:
    with pytest.raises(ValueError, match=r"expected one such as http://127\.0\.0\.1:8080"):
        RestClient(bad)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"error":{"code":400,"type":"T","message":"m"}}', 400),
        (b'{"code":503,"type":"ServiceUnavailableException","message":"m"}', 503),
        (b'{"detections":[]}', None),
        (b'{"error":"m"}', None),
        (b"[]", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_an_error_is_told_from_an_answer(body: bytes, code: int | None) -> None:
    found = error_in(body)
    assert (found.code if found else None) == code
