"""The page in a real browser: from images to drawn masks, and what is said where there are none."""

import base64
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.archive import ROOT
from maskx_draw import TINT, color_of, mask_window
from maskx_service import Service
from tests.browser.conftest import Site
from tests.browser.look import (
    BLUE,
    GREEN,
    RED,
    answered,
    by_id,
    canvas,
    choose,
    found,
    move_threshold,
    status,
    until,
    write,
)
from tests.pictures import exif
from tests.served.standin import scene
from tests.served.upstream import Answer, Seen


def overlay(service: Service, path: Path) -> np.ndarray:
    """The server's own picture of it."""
    (answer,) = service.answer([{"body": bytearray(path.read_bytes())}], [{"output": "overlay"}])
    return np.asarray(Image.open(io.BytesIO(answer.body)).convert("RGB"))


def detections_of(service: Service, path: Path, **parameters: str) -> list[dict[str, Any]]:
    (answer,) = service.answer([{"body": bytearray(path.read_bytes())}], [parameters])
    content: dict[str, Any] = json.loads(answer.body)
    return list(content["detections"])


def inner(
    detections: list[dict[str, Any]], shape: tuple[int, int], factor: int, *, hatched: bool
) -> np.ndarray:
    """bool [h, w] of the enlarged image: pixels inside masks of one sort, away from their outlines."""
    whole = np.zeros(shape, bool)
    for one in detections:
        window = mask_window(one["segmentation"], height=shape[0] // factor, width=shape[1] // factor)
        if window is not None and one["mask_supervised"] != hatched:
            part = window.pixels.repeat(factor, 0).repeat(factor, 1)
            y, x = window.top * factor, window.left * factor
            whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    padded = np.pad(whole, 1)
    core: np.ndarray = whole & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return core


@pytest.mark.parametrize("mask_format", ["rle", "polygon", "png"])
def test_the_masks_are_drawn_pixel_for_pixel_as_the_server_draws_them(
    driver: Any, site: Site, service: Service, photo: Path, mask_format: str
) -> None:
    driver.execute_script("document.getElementById('format').value = arguments[0]", mask_format)
    choose(driver, photo)
    answered(driver, "photo.png")
    drawn, expected = canvas(driver, "picture")[..., :3].astype(int), overlay(service, photo).astype(int)
    assert drawn.shape == expected.shape == (480, 640, 3)
    detections = detections_of(service, photo)
    plain = inner(detections, drawn.shape[:2], 16, hatched=False)
    hatched = inner(detections, drawn.shape[:2], 16, hatched=True)
    # the server's boxes and names lie over its masks: most pixels agree, and where it drew nothing else all do
    for where in (plain, hatched):
        same = np.abs(drawn - expected)[where].max(axis=-1) <= 1
        assert where.sum() > 20_000 and same.mean() > 0.75
    blue = next(one for one in detections if one["category_id"] == 90)
    x, y, w, h = (int(16 * value) for value in blue["bbox"])
    mixed = np.rint(np.array((0, 0, 255)) * (1 - TINT) + np.array(color_of(90)) * TINT)
    assert np.abs(drawn[y + 1 : y + h - 1, x + 1 : x + w - 1] - mixed).max() <= 1
    nothing = ~np.any([mask_pixels(one) for one in detections], axis=0)
    assert (drawn[nothing] == 128).all()


def mask_pixels(detection: dict[str, Any]) -> np.ndarray:
    """bool [480, 640]: where a mask of the 40 x 30 photo lies in the enlarged one."""
    whole = np.zeros((30, 40), bool)
    window = mask_window(detection["segmentation"], height=30, width=40)
    assert window is not None
    rows, columns = window.pixels.shape
    whole[window.top : window.top + rows, window.left : window.left + columns] = window.pixels
    return whole.repeat(16, 0).repeat(16, 1)


def test_a_transferred_mask_is_hatched_and_named_so_and_a_taught_one_too(
    driver: Any, site: Site, photo: Path
) -> None:
    def untaught(content: dict[str, Any]) -> None:
        content["detections"][1]["mask_source"] = "boxes"

    site.change = untaught
    choose(driver, photo)
    assert answered(driver, "photo.png").startswith(
        "photo.png: 3 found in 40 x 30 pixels; 1 with a transferred mask"
    )
    assert found(driver) == [
        ["red", "0.80", "mask learned from masks"],
        ["green", "1.00", "mask transferred"],
        ["bleu é", "1.00", "mask learned from masks"],
    ]
    assert by_id(driver, "legend-transferred").is_displayed()
    assert not by_id(driver, "legend-taught").is_displayed()
    x, y, w, h = GREEN
    inside = canvas(driver, "picture")[16 * y + 20 : 16 * (y + h) - 20, 16 * x + 20 : 16 * (x + w) - 20, :3]
    assert len(np.unique(inside.reshape(-1, 3), axis=0)) == 2  # stripes and what lies between them

    def taught(content: dict[str, Any]) -> None:
        content["detections"][1]["mask_source"] = "taught"

    site.change = taught
    driver.get(site.url)
    choose(driver, photo)
    answered(driver, "photo.png")
    assert found(driver)[1][2] == "mask learned from made masks"
    assert by_id(driver, "legend-taught").is_displayed()


def test_the_slider_filters_at_once_and_asks_again_only_below_what_was_asked(
    driver: Any, site: Site, photo: Path
) -> None:
    choose(driver, photo)
    answered(driver, "photo.png")
    move_threshold(driver, 0.9)
    assert [one[0] for one in found(driver)] == ["green", "bleu é"]
    assert "1 below the score" in status(driver)
    move_threshold(driver, 0.6)
    until(lambda: len(found(driver)) == 3, "all three again")
    assert [one.headers["score_threshold"] for one in site.behind.seen] == ["0.5"]
    move_threshold(driver, 0.3)
    until(lambda: len(site.behind.seen) == 2, "a second request")
    assert site.behind.seen[1].headers["score_threshold"] == "0.3"


def test_categories_are_asked_for_in_any_script_and_an_unknown_one_is_told(
    driver: Any, site: Site, photo: Path
) -> None:
    by_id(driver, "categories").send_keys("bleu é")
    choose(driver, photo)
    answered(driver, "photo.png")
    assert [one[0] for one in found(driver)] == ["bleu é"]
    by_id(driver, "categories").clear()
    by_id(driver, "categories").send_keys("zebra")
    said = until(lambda: by_id(driver, "error").text, "an error")
    assert "zebra" in said and "InvalidRequest, 400" in said


def test_a_file_that_is_no_image_shows_the_servers_message_and_the_next_image_is_answered(
    driver: Any, site: Site, service: Service, photo: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "notes.pdf"
    bad.write_bytes(b"%PDF-1.7 and so on")
    (answer,) = service.answer([{"body": bytearray(bad.read_bytes())}], [{}])
    message = json.loads(answer.body)["error"]["message"]
    choose(driver, bad, photo)
    assert until(lambda: by_id(driver, "error").text, "an error") == f"{message} (InvalidImage, 400)"
    notes = [one.text.split("\n") for one in driver.find_elements("css selector", "#strip button")]
    until(lambda: "3 found" in by_id(driver, "strip").text, "the second image")
    assert notes[0] == ["notes.pdf", "error"]
    driver.find_elements("css selector", "#strip button")[1].click()
    answered(driver, "photo.png")
    assert not by_id(driver, "error").is_displayed()


def test_where_nobody_answers_the_page_says_so_and_asks_again_when_told(
    driver: Any, site: Site, photo: Path
) -> None:
    answer = site.behind.answer
    site.behind.answer = lambda _: None
    choose(driver, photo)
    assert "nobody answers" in until(lambda: by_id(driver, "error").text, "an error")
    site.behind.answer = answer
    by_id(driver, "again").click()
    answered(driver, "photo.png")
    assert not by_id(driver, "error").is_displayed()


def test_a_wanted_secret_is_asked_for_and_sent(driver: Any, site: Site, photo: Path) -> None:
    answer = site.behind.answer

    def guarded(seen: Seen) -> Answer | None:
        if seen.headers.get("authorization") == "Bearer 5ecret":
            return answer(seen)
        said = {"error": {"code": 401, "type": "Unauthenticated", "message": "no valid secret"}}
        return Answer(401, json.dumps(said).encode())

    site.behind.answer = guarded
    choose(driver, photo)
    until(lambda: by_id(driver, "token").is_displayed(), "the field for the secret")
    assert by_id(driver, "error").text == "no valid secret (Unauthenticated, 401)"
    by_id(driver, "token").send_keys("5ecret")
    answered(driver, "photo.png")
    assert "5ecret" not in by_id(driver, "curl").text + by_id(driver, "python").text


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_lie_on_a_photograph_that_its_exif_block_turns(
    driver: Any, site: Site, tmp_path: Path, orientation: int
) -> None:
    pixels = scene(width=96, height=64, red=(8, 8, 40, 16), green=(60, 30, 24, 24))
    path = write(tmp_path, "turned.jpg", pixels, exif=exif(orientation), quality=100, subsampling=0)
    choose(driver, path)
    answered(driver, "turned.jpg")
    by_id(driver, "format")
    drawn = canvas(driver, "picture")[..., :3].astype(int)
    assert (drawn.shape[0] > drawn.shape[1]) == (orientation > 4)
    assert [one[0] for one in sorted(found(driver))] == ["green", "red"]
    # the tint is a colour of its own: of what is red in the photograph all but the edge has it, and nothing else
    tinted = np.rint(np.array((255, 0, 0)) * (1 - TINT) + np.array(color_of(7)) * TINT)
    close = np.abs(drawn - tinted).max(axis=-1) <= 12
    assert 0.8 < close.sum() / (40 * 16 * 7 * 7) <= 1.0


def test_a_large_photograph_is_drawn_smaller_and_its_masks_with_it(
    driver: Any, site: Site, tmp_path: Path
) -> None:
    path = write(tmp_path, "large.png", scene(width=4096, height=1024, blue=(1000, 200, 2000, 600)))
    choose(driver, path)
    answered(driver, "large.png")
    drawn = canvas(driver, "picture")[..., :3]
    assert drawn.shape == (512, 2048, 3)
    assert (drawn[102:398, 502:1498] != (0, 0, 255)).any(axis=-1).all() and (drawn[:98] == 128).all()


def test_images_that_are_dropped_pasted_or_taken_are_asked_for(driver: Any, site: Site, photo: Path) -> None:
    give = """const [base64, kind] = arguments;
        const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], `${kind}.png`, {type: "image/png"}));
        const event = kind === "drop" ? new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true})
            : new ClipboardEvent(kind, {clipboardData: data, bubbles: true});
        document.body.dispatchEvent(event);"""
    text = base64.b64encode(photo.read_bytes()).decode()
    for kind in ("drop", "paste"):
        driver.execute_script(give, text, kind)
        answered(driver, f"{kind}.png")
    by_id(driver, "camera").click()
    until(lambda: driver.execute_script("return document.getElementById('video').videoWidth"), "the camera")
    by_id(driver, "take").click()
    answered(driver, "photo.jpg")
    assert [one.body[:3] for one in site.behind.seen] == [b"\x89PN", b"\x89PN", b"\xff\xd8\xff"]


@pytest.mark.parametrize("name", ['it\'s a "photo" é.png', 'it\'s [1] {a} "photo" é.png'])
def test_the_line_for_the_shell_and_that_for_python_give_the_same_answer(
    driver: Any, site: Site, tmp_path: Path, name: str
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    write(tmp_path, name, scene(red=RED, blue=BLUE))
    by_id(driver, "categories").send_keys("bleu é,7")
    move_threshold(driver, 0.25)
    choose(driver, tmp_path / name)
    answered(driver, name)
    expected = [("bleu é", 1.0), ("red", 1.0)]
    shell = subprocess.run(
        ["sh", "-c", by_id(driver, "curl").text], cwd=tmp_path, capture_output=True, check=True
    )
    answer = json.loads(shell.stdout)
    assert sorted((one["category"], one["score"]) for one in answer["detections"]) == expected
    code = (
        by_id(driver, "python").text
        + "\nprint(sorted((one.category, one.score) for one in found.detections))"
    )
    run = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == str(expected)
    assert "score_threshold: 0.25" in by_id(driver, "curl").text
    assert "score_threshold=0.25" in code


def test_the_policy_keeps_out_what_is_not_the_servers_own(driver: Any, site: Site) -> None:
    """Else the console that every test looks at would prove nothing."""
    refused = driver.execute_async_script(
        """const done = arguments[0], seen = [];
        document.addEventListener("securitypolicyviolation", (event) => {
            seen.push(event.effectiveDirective);
            if (seen.length === 3) done(seen.sort());
        });
        document.body.append(Object.assign(document.createElement("script"), {textContent: "window.bad = 1"}));
        const styled = document.createElement("p");
        styled.setAttribute("style", "color: red");
        fetch("http://127.0.0.1:9/").catch(() => {});"""
    )
    assert refused == ["connect-src", "script-src-elem", "style-src-attr"]
    assert driver.execute_script("return window.bad") is None
    assert "Content Security Policy" in str(
        driver.get_log("browser")
    )  # read here, so that nobody complains of it
