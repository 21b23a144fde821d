"""A page of another origin asks from a browser: by TorchServe's own setting, and through the proxy."""

import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.processes import ENGINES
from server.settings import CONFIG, effective_config
from tests.browser.look import programs
from tests.served.machine import Machine, serving
from tests.served.nginx import Proxy, proxy
from tests.served.standin import png, scene
from tests.served.test_configuration import PORTS, properties
from tests.served.upstream import Answer, Upstream

IMAGE = png(scene(width=61, height=47, red=(3, 2, 20, 11)))
PAGE = "http://localhost:3000"
PATHS = ["/predictions/maskx", "/v1/models/maskx:predict", "/v2/models/maskx/infer"]
HEADERS = "content-type,score_threshold"
ASKS = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": HEADERS}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def cors_of(headers: dict[str, str]) -> dict[str, str]:
    start = "access-control-allow-"
    return {name.removeprefix(start): value for name, value in headers.items() if name.startswith(start)}


def test_a_start_sets_what_torchserve_reads_and_leaves_it_empty_else(tmp_path: Path) -> None:
    shipped = CONFIG.read_text()
    keys = [f"cors_allowed_{name}" for name in ("origin", "methods", "headers")]
    plain = properties(effective_config(shipped, PORTS, state=tmp_path, with_tokens=False))
    assert [plain[key] for key in keys] == ["", "", ""]
    for origin in (PAGE, "*", "https://a.example.org", "http://[::1]:80"):
        made = effective_config(shipped, PORTS, state=tmp_path, with_tokens=False, cors_origin=origin)
        assert properties(made)[keys[0]] == origin and "POST" in properties(made)[keys[1]]
    for wrong in ("localhost:3000", "http://a/path", "http://a http://b", "http://a\nmodels={}", "null"):
        with pytest.raises(ValueError, match="--cors-origin is .*; the one origin of a page"):
            effective_config(shipped, PORTS, state=tmp_path, with_tokens=False, cors_origin=wrong)


@pytest.mark.engines(*ENGINES)
def test_a_server_says_nothing_of_origins_as_it_is(server: Machine) -> None:
    for method in ("OPTIONS", "POST"):
        assert cors_of(server.ask(IMAGE if method == "POST" else b"", ASKS, method=method).headers) == {}


@pytest.fixture(scope="module")
def open_server(
    standin_archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, engine: str
) -> Iterator[Machine]:
    archive = standin_archive("cors", batchSize=4, maxBatchDelay=1)
    with serving(
        tmp_path_factory.mktemp("cors"), archive, "--cors-origin", "*", "--engine", engine
    ) as machine:
        yield machine


@pytest.mark.engines(*ENGINES)
@pytest.mark.parametrize("path", PATHS)
def test_a_page_may_ask_where_the_start_allows_it(open_server: Machine, path: str) -> None:
    before = open_server.ask(b"", ASKS, path, method="OPTIONS")
    told = cors_of(before.headers)
    assert before.status == 200 and told["origin"] == "*" and "POST" in told["methods"]
    assert set(HEADERS.split(",")) <= set(told["headers"].split(", "))
    headers = {"Origin": PAGE, "Content-Type": "image/png", "score_threshold": "0.4"}
    reply = open_server.ask(IMAGE, headers, path)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "*")
    assert len(json.loads(reply.body)["detections"]) == 1
    bad = open_server.ask(b"?", headers, path)
    assert (bad.status, bad.headers["access-control-allow-origin"]) == (400, "*")


@pytest.fixture(scope="module")
def front(behind: Upstream) -> Iterator[Proxy]:
    origins = f"https://app.example.org {PAGE}"
    with proxy(INFERENCE=behind.address, READINESS=behind.address, CORS=origins) as made:
        yield made


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("path", PATHS)
def test_the_proxy_answers_a_browsers_question_itself(front: Proxy, behind: Upstream, path: str) -> None:
    reply = front.ask("OPTIONS", path, b"", ASKS, secret=None)
    told = cors_of(reply.headers)
    assert (reply.status, told["origin"], reply.headers["vary"]) == (204, PAGE, "Origin")
    assert told["methods"] == "POST, PUT"
    allowed = told["headers"].lower().split(", ")
    assert {"authorization", *HEADERS.split(",")} <= set(allowed)
    assert behind.seen == []


@pytest.mark.usefixtures("fresh")
def test_the_proxy_tells_only_pages_of_the_origins_that_are_named(front: Proxy, behind: Upstream) -> None:
    behind.answer = lambda _: Answer(
        200, b"{}", {"access-control-allow-origin": "*", "access-control-allow-methods": "X"}
    )
    for origin in (PAGE, "https://app.example.org"):
        reply = front.ask(headers={"Origin": origin})
        assert (reply.status, cors_of(reply.headers)) == (200, {"origin": origin})
        assert "X-Request-Id" in reply.headers["access-control-expose-headers"]
    others = (
        "http://localhost:30001",
        "https://app.example.org.evil.org",
        "http://app.example.org",
        "null",
        "",
    )
    for origin in others:
        assert cors_of(front.ask(headers={"Origin": origin}).headers) == {}
        asked = front.ask("OPTIONS", headers={**ASKS, "Origin": origin}, secret=None)
        assert (asked.status, cors_of(asked.headers)) == (401, {})


@pytest.mark.usefixtures("fresh")
def test_a_page_can_read_the_proxys_errors_too(front: Proxy, behind: Upstream) -> None:
    refused = front.ask(headers={"Origin": PAGE}, secret=None)
    assert (refused.status, cors_of(refused.headers)) == (401, {"origin": PAGE})
    behind.answer = lambda _: Answer(503, b"{}", {})
    busy = front.ask(headers={"Origin": PAGE})
    assert (busy.status, cors_of(busy.headers)) == (503, {"origin": PAGE})


@pytest.mark.usefixtures("fresh")
def test_the_proxy_says_nothing_of_origins_as_it_is(behind: Upstream) -> None:
    with proxy(INFERENCE=behind.address, READINESS=behind.address) as made:
        assert cors_of(made.ask(headers={"Origin": PAGE}).headers) == {}
        assert made.ask("OPTIONS", headers=ASKS, secret=None).status == 401
        made.settings["CORS"] = "app.example.org"
        refused = made.entrypoint("check")
        assert refused.returncode == 2 and "MASKX_CORS is 'app.example.org'" in refused.stderr


def test_a_page_in_a_real_browser_reads_the_answer(open_server: Machine, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None) or programs()[0]
    (tmp_path / "image.png").write_bytes(IMAGE)
    url = f"http://127.0.0.1:{open_server.ports.inference}/predictions/maskx"
    (tmp_path / "page.html").write_text(
        "<body>waiting<script>(async () => { const image = await (await fetch('image.png')).blob();"
        f"const reply = await fetch('{url}', {{method: 'POST', body: image, headers: {{'score_threshold': '0.4'}}}});"
        "document.body.textContent = 'found ' + (await reply.json()).detections.length; })()</script>"
    )

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        page = f"http://127.0.0.1:{site.server_port}/page.html"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
        site.shutdown()
    assert "found 1" in shown
