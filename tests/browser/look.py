"""A browser for tests; what the tests of the page do in it, and read of it."""

import base64
import io
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.archive import ROOT
from tests.pictures import encoded

FETCHED = ROOT / "build" / "tools" / "chromium"

RED, GREEN, BLUE = (4, 3, 10, 8), (20, 5, 12, 14), (2, 20, 30, 6)
"""Where they are in the photo."""
SIGNS_OF_LIFE = 60.0
"""Seconds that a page may take for what it does at once; a limit for waits, not a measure."""


def programs() -> tuple[str, str]:
    """chromium and its driver: this machine's, else those in build/tools, else a skip."""
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if all(found):
        return str(found[0]), str(found[1])
    fetched = [FETCHED / name for name in ("chromium", "chromedriver")]
    if not all(one.is_file() for one in fetched):
        pytest.skip("no chromium on the path nor in build/tools; make tools fetches it (Debian)")
    return str(fetched[0]), str(fetched[1])


def until(done: Callable[[], Any], what: str) -> Any:
    """The first true value; fails where there is none in time."""
    end = time.monotonic() + SIGNS_OF_LIFE
    while not (value := done()):
        assert time.monotonic() < end, f"{what}: not within {SIGNS_OF_LIFE} s"
        time.sleep(0.03)
    return value


def by_id(driver: Any, name: str) -> Any:
    return driver.find_element("id", name)


def choose(driver: Any, *paths: Path) -> None:
    """Gives files to the page as its button does."""
    by_id(driver, "files").send_keys("\n".join(map(str, paths)))


def status(driver: Any) -> str:
    return str(by_id(driver, "status").text)


def answered(driver: Any, name: str) -> str:
    """What the page says of the image when it was answered."""
    return str(until(lambda: f"{name}: " in (text := status(driver)) and " found" in text and text, name))


def found(driver: Any) -> list[list[str]]:
    """Name, score and where the mask is from, of each detection in the list; read at one moment of the page."""
    script = "return [...document.querySelectorAll('#found button')].map((one) => one.innerText)"
    return [str(text).split("\n") for text in driver.execute_script(script)]


def canvas(driver: Any, name: str) -> np.ndarray:
    """uint8 [h, w, 4]: the pixels of a canvas, as they are."""
    width, height, text = driver.execute_script(
        """const one = document.getElementById(arguments[0]);
        return [one.width, one.height, one.toDataURL("image/png").slice(22)];""",
        name,
    )
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    assert pixels.shape == (height, width, 4)
    return pixels


def move_threshold(driver: Any, value: float) -> None:
    """Moves the slider as a hand does."""
    driver.execute_script(
        """const slider = document.getElementById("threshold");
        slider.value = arguments[0];
        for (const kind of ["input", "change"]) slider.dispatchEvent(new Event(kind, {bubbles: true}));""",
        str(value),
    )


def focused(driver: Any) -> str:
    """The id of what has the focus, or its text where it has none."""
    one = driver.switch_to.active_element
    return str(one.get_attribute("id") or one.text)


def write(folder: Path, name: str, pixels: np.ndarray, **options: Any) -> Path:
    path = folder / name
    kind = {".jpg": "JPEG", ".png": "PNG"}[path.suffix]
    path.write_bytes(encoded(Image.fromarray(pixels), kind, **options))
    return path
