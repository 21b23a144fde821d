"""server/page.py: the page's files for any server, and its own small server in front of another."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import page
from server.page import PageServer, files, main
from tests.served.nginx import Reply, reply_of
from tests.served.upstream import Answer, Upstream


@pytest.fixture
def front(behind: Upstream, fresh: None) -> Iterator[PageServer]:
    with PageServer(0, f"http://{behind.address}/") as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(
    front: PageServer, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", front.server_port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        return reply_of(connection)
    finally:
        connection.close()


def test_what_the_page_asks_is_passed_on_with_its_parameters_and_the_answer_back(
    front: PageServer, behind: Upstream
) -> None:
    behind.answer = lambda _: Answer(
        503, b'{"error": 1}', {"content-type": "application/json", "retry-after": "1"}
    )
    sent = {"score_threshold": "0.3", "Authorization": "Bearer x", "Cookie": "no", "Origin": own(front)}
    reply = ask(front, "POST", "/predictions/maskx/2.0", b"an image", sent)
    assert (reply.status, reply.body, reply.headers["retry-after"]) == (503, b'{"error": 1}', "1")
    (seen,) = behind.seen
    assert (seen.method, seen.path, seen.body) == ("POST", "/predictions/maskx/2.0", b"an image")
    assert seen.headers["score_threshold"] == "0.3" and seen.headers["authorization"] == "Bearer x"
    assert "cookie" not in seen.headers


def own(front: PageServer) -> str:
    return f"http://127.0.0.1:{front.server_port}"


def test_files_are_sent_whole_and_only_by_their_own_paths(front: PageServer) -> None:
    for path, file in files().items():
        reply = ask(front, "GET", path)
        assert (reply.status, reply.body, reply.headers["content-type"]) == (
            200,
            file.body,
            file.content_type,
        )
        assert reply.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert ask(front, "HEAD", path).headers["content-length"] == str(len(file.body))
    for path in ("/js/../page.py", "/js/package.json", "/server/page.py", "/js/page/"):
        assert ask(front, "GET", path).status == 404


def test_the_document_is_that_of_the_server_behind_without_what_the_browser_sent(
    front: PageServer, behind: Upstream
) -> None:
    behind.answer = lambda _: Answer(200, b'{"openapi": "3.1.0"}')
    reply = ask(front, "GET", "/openapi.json?x=1", headers={"Authorization": "Bearer x"})
    assert (reply.status, reply.body) == (200, b'{"openapi": "3.1.0"}')
    assert reply.headers["content-security-policy"].startswith("default-src 'none'")
    (seen,) = behind.seen
    assert (seen.method, seen.path, "authorization" in seen.headers) == ("GET", "/openapi.json", False)
    behind.answer = lambda _: Answer(404, b"{}")
    assert ask(front, "GET", "/openapi.json").status == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Host": "evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
    ],
)
def test_another_page_in_the_same_browser_cannot_ask_through_it(
    front: PageServer, behind: Upstream, headers: dict[str, str]
) -> None:
    assert ask(front, "POST", "/predictions/maskx", b"x", headers).status == 403
    assert behind.seen == []


def test_only_predictions_can_be_asked_for(front: PageServer, behind: Upstream) -> None:
    for path in (
        "/models",
        "/predictions",
        "/predictions/../models",
        "/predictions/%2e%2e/models",
        "//x/predictions/a",
    ):
        assert ask(front, "POST", path, b"x").status == 404, path
    assert behind.seen == []


def test_where_nobody_answers_behind_it_the_page_is_told_who(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with PageServer(0, gone) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        reply = ask(made, "POST", "/predictions/maskx", b"x")
        made.shutdown()
        thread.join()
    said = json.loads(reply.body)["error"]
    assert (reply.status, said["code"], said["type"]) == (502, 502, "Unreachable") and gone in said["message"]
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server", "ftp://x"], "--server is 'ftp://x'; http://HOST:PORT is expected"),
        (["--server", "localhost:8080"], "--server is 'localhost:8080'"),
        (["--server", "http://[x"], "--server is 'http://[x'"),
        (["--port", "99999"], "port"),
    ],
)
def test_a_wrong_address_is_told_in_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said


def test_a_port_that_is_taken_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    assert "in use" in capsys.readouterr().err


def test_where_the_clients_files_are_missing_it_is_told_where_they_were_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "BESIDE", tmp_path)
    files.cache_clear()
    try:
        assert main([]) == 2
        assert str(tmp_path / "maskx_client" / "js") in capsys.readouterr().err
    finally:
        files.cache_clear()


def test_the_wheel_takes_all_of_the_pages_files(root: Path) -> None:
    """`files` finds them beside the installed server; tests/test_wheel.py builds one."""
    assert {path.suffix for path in (root / "client" / "js" / "page").iterdir()} == {".html", ".js", ".css"}
