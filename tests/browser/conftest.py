"""A browser, and the page before a server that answers by the handler's service, without TorchServe."""

import email
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from maskx_model import ServedModel
from maskx_service import Service
from maskx_settings import Limits
from server.page import PageServer
from tests.browser.look import BLUE, GREEN, RED, programs, until, write
from tests.served.standin import scene
from tests.served.upstream import Answer, Seen, Upstream, upstream


@dataclass
class Site:
    """The page's address, and the server behind it. `change` may change an answer before it is sent; `told` is its
    OpenAPI document, None where it has none, as TorchServe."""

    url: str
    behind: Upstream
    change: Callable[[dict[str, Any]], None]
    told: dict[str, Any] | None = None

    def open(self, driver: Any) -> None:
        """Opens the page anew, until it has asked for the document; what was asked before is forgotten."""
        self.behind.seen.clear()
        driver.get(self.url)
        until(lambda: [one for one in self.behind.seen if one.method == "GET"], "the page")
        self.behind.seen.clear()


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window, of 1280 x 900 pixels, with a camera that is none."""
    selenium = pytest.importorskip(
        "selenium.webdriver", reason="selenium of requirements/dev.txt is not installed"
    )
    chromium, chromedriver = programs()
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("chromium")
    for word in (
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--force-color-profile=srgb",
        "--window-size=1280,900",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--user-data-dir={profile}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = selenium.ChromeService(chromedriver, log_output=str(profile / "driver.log"))
    browser = selenium.Chrome(options=options, service=service)
    browser.set_script_timeout(60)
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="session")
def service(standin: Path) -> Service:
    """What answers with the stand-in, by the default limits."""
    model = ServedModel(standin, torch.device("cpu"), precision="float32")
    return Service(model, Limits(), name="maskx", version="1.0")


def fields_of(seen: Seen) -> dict[str, Any]:
    """The request as TorchServe hands it to the handler: a form's fields, else the body."""
    kind = seen.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        return {"body": bytearray(seen.body)}
    form = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + seen.body)
    fields: dict[str, Any] = {}
    for part in form.walk():
        content = part.get_payload(decode=True)
        if isinstance(content, bytes):
            fields[str(part.get_param("name", header="content-disposition"))] = bytearray(content)
    return fields


@pytest.fixture(scope="session")
def whole_site(service: Service) -> Iterator[Site]:
    with upstream() as behind, PageServer(0, f"http://{behind.address}") as page:
        thread = Thread(target=page.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Site(f"http://127.0.0.1:{page.server_port}/", behind, lambda _: None)
        page.shutdown()
        thread.join()


@pytest.fixture
def site(whole_site: Site, service: Service, driver: Any) -> Iterator[Site]:
    """The page, opened anew; afterwards the browser must not have complained of anything but refused requests."""

    def answer(seen: Seen) -> Answer:
        if seen.method == "GET":
            told = whole_site.told if seen.path == "/openapi.json" else None
            return Answer(404 if told is None else 200, json.dumps(told).encode())
        (made,) = service.answer([fields_of(seen)], [seen.headers])
        body = made.body
        if made.content_type == "application/json" and made.status == 200:
            content = json.loads(body)
            whole_site.change(content)
            body = json.dumps(content).encode()
        return Answer(made.status, body, {"content-type": made.content_type})

    whole_site.change = lambda _: None
    whole_site.behind.answer = answer
    whole_site.told = None
    driver.get_log("browser")
    whole_site.open(driver)
    yield whole_site
    complaints = [one["message"] for one in driver.get_log("browser")]
    assert [one for one in complaints if "Failed to load resource" not in one] == []


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """40 x 30 pixels: red and blue have masks, green's is transferred. A piece of red is cut out: its score is 0.8."""
    pixels = scene(red=RED, green=GREEN, blue=BLUE)
    pixels[3:7, 4:8] = 128
    return write(tmp_path, "photo.png", pixels)
