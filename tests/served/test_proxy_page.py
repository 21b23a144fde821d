"""The page behind the proxy, with the real nginx: its files with their headers, to anybody, and nothing else."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.page import files
from tests.served.nginx import Proxy, make_proxy, proxy
from tests.served.upstream import Answer, Upstream


@pytest.fixture(scope="module")
def front(behind: Upstream) -> Iterator[Proxy]:
    with proxy(INFERENCE=behind.address) as made:
        yield made


def test_every_file_is_there_without_a_secret_with_the_headers_that_every_server_sends(
    front: Proxy, behind: Upstream
) -> None:
    assert len(files()) > 5
    for path, file in files().items():
        reply = front.ask("GET", path, b"", secret=None)
        assert (reply.status, reply.body) == (200, file.body), path
        assert reply.headers["content-type"] == file.content_type
        assert {name: reply.headers.get(name.lower()) for name in file.headers} == dict(file.headers)
        assert front.ask("HEAD", path, b"", secret=None).status == 200
    assert behind.seen == []


@pytest.mark.parametrize("path", ["/", "/js/maskx.js", "/js/page/page.js"])
def test_the_pages_files_can_only_be_read(front: Proxy, behind: Upstream, path: str) -> None:
    for method in ("POST", "PUT", "DELETE"):
        reply = front.ask(method, path, b"x")
        assert (reply.status, reply.error()["type"]) == (404, "NotFound")
    assert behind.seen == []


def test_a_browser_that_has_a_file_is_not_sent_it_again(front: Proxy) -> None:
    tag = front.ask("GET", "/js/maskx.js", b"").headers["etag"]
    assert front.ask("GET", "/js/maskx.js", b"", {"If-None-Match": tag}).status == 304


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_what_the_server_tells_of_itself_is_there_without_a_secret_under_its_own_policy(
    front: Proxy, behind: Upstream, path: str
) -> None:
    behind.seen.clear()
    policy = {"Content-Security-Policy": "default-src 'none'", "X-Content-Type-Options": "nosniff"}
    behind.answer = lambda _: Answer(200, b"what is told", {"content-type": "text/html", **policy})
    try:
        reply = front.ask("GET", f"{path}?a=b", b"", {"Cookie": "x"}, secret=None)
        assert (reply.status, reply.body) == (200, b"what is told")
        assert {name: reply.headers[name.lower()] for name in policy} == policy
        assert front.ask("HEAD", path, b"", secret=None).status == 200
        assert front.ask("POST", path, b"x").status == 404
        assert {one.path for one in behind.seen} == {path}
        assert not {"cookie", "authorization"} & set(behind.seen[0].headers)
        behind.answer = lambda _: Answer(404, b"TorchServe's own words")
        reply = front.ask("GET", path, b"", secret=None)
        assert (reply.status, reply.error()["type"]) == (404, "NotFound")
    finally:
        behind.answer = lambda _: Answer()
        behind.seen.clear()


def test_a_proxy_that_is_told_to_has_no_page_but_answers(behind: Upstream) -> None:
    with proxy(INFERENCE=behind.address, PAGE="off") as made:
        for path in (*files(), "/openapi.json", "/docs"):
            reply = made.ask("GET", path, b"")
            assert (reply.status, reply.error()["type"]) == (404, "NotFound")
        assert made.ask().status == 200


def test_where_its_files_are_missing_the_proxy_says_so_and_what_to_do() -> None:
    made = make_proxy()
    try:
        subprocess.run(["rm", "-r", str(made.folder / "nginx" / "js")], check=True)
        failed = made.entrypoint("check")
        assert failed.returncode == 2 and "MASKX_PAGE=off goes without" in failed.stderr
        made.settings["PAGE"] = "perhaps"
        assert "MASKX_PAGE is 'perhaps'; expected on or off" in made.entrypoint("check").stderr
    finally:
        made.end()


def test_the_pages_addresses_are_those_that_it_asks_for(root: Path) -> None:
    """Relative ones: the page works behind a path of another proxy too."""
    page = (root / "client" / "js" / "page" / "index.html").read_text()
    for path in files():
        if path.startswith("/js/page/p"):
            assert f'"{path[1:]}"' in page
    assert "http://" not in page and "https://" not in page and '="/' not in page
