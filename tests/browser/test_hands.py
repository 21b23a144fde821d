"""The page by keyboard and pointer, on wide and narrow screens, in light and dark."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser.conftest import Site
from tests.browser.look import (
    RED,
    answered,
    by_id,
    canvas,
    choose,
    focused,
    found,
    move_threshold,
    until,
    write,
)
from tests.served.standin import scene


def stops(driver: Any, count: int) -> list[str]:
    """What the Tab key comes to, from the top of the page; each must show that it has the focus."""
    from selenium.webdriver import ActionChains, Keys

    driver.execute_script("document.activeElement.blur()")
    seen = []
    for _ in range(count):
        ActionChains(driver).send_keys(Keys.TAB).perform()
        seen.append(focused(driver).split("\n")[0])
        assert driver.execute_script(
            """const one = document.activeElement;
            return [one, one.parentElement].some((it) => getComputedStyle(it).outlineStyle === "solid")"""
        ), f"{seen[-1]} does not show that it has the focus"
    return seen


def test_the_tab_key_comes_to_everything_in_the_order_of_reading(
    driver: Any, site: Site, photo: Path
) -> None:
    choose(driver, photo)
    answered(driver, "photo.png")
    assert stops(driver, 12) == [
        "files", "camera", "clear", "threshold", "categories", "format", "Model and access", "red",
        "curl", "copy-curl", "python", "copy-python",
    ]  # fmt: skip


def test_arrow_keys_point_at_one_detection_after_the_other_and_enter_keeps_it(
    driver: Any, site: Site, photo: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    choose(driver, photo)
    answered(driver, "photo.png")
    everything = canvas(driver, "picture")
    assert stops(driver, 8)[-1] == "red"
    driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert focused(driver).startswith("green")
    until(lambda: canvas(driver, "picture").tobytes() != everything.tobytes(), "one mask alone")
    alone = canvas(driver, "picture")
    x, y, w, h = (16 * value for value in RED)
    assert (alone[y : y + h, x + 64 : x + w, :3] == (255, 0, 0)).all()  # red's is not drawn now
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    driver.switch_to.active_element.send_keys(Keys.TAB)
    pressed = [
        one.get_attribute("aria-pressed") for one in driver.find_elements("css selector", "#found button")
    ]
    assert pressed == ["false", "true", "false"]
    assert canvas(driver, "picture").tobytes() == alone.tobytes()


def test_a_detection_keeps_the_focus_while_the_list_says_the_same(
    driver: Any, site: Site, photo: Path
) -> None:
    choose(driver, photo)
    answered(driver, "photo.png")
    driver.execute_script(
        "const one = document.querySelectorAll('#found button')[1]; one.click(); one.focus()"
    )
    assert focused(driver).startswith("green")
    move_threshold(driver, 0.51)  # hides nothing; the page shows itself anew
    assert by_id(driver, "threshold-shown").text == "0.51"
    assert focused(driver).startswith("green")
    pressed = "return [...document.querySelectorAll('#found button')].map((it) => it.ariaPressed)"
    assert driver.execute_script(pressed) == ["false", "true", "false"]
    driver.execute_script("document.querySelector('#strip button').click()")
    assert driver.execute_script(pressed) == ["false", "false", "false"]
    move_threshold(driver, 0.9)
    assert [one[0] for one in found(driver)] == ["green", "bleu é"]


def test_pointing_at_the_image_points_at_the_smallest_mask_there(
    driver: Any, site: Site, photo: Path
) -> None:
    from selenium.webdriver import ActionChains

    choose(driver, photo)
    answered(driver, "photo.png")
    marks = by_id(driver, "marks")
    step = marks.size["width"] / 40
    dx, dy = (26 - 20) * step, (12 - 15) * step  # 26, 12 lies in green
    ActionChains(driver).move_to_element_with_offset(marks, int(dx), int(dy)).perform()
    chosen = until(lambda: driver.find_elements("css selector", "#found .chosen"), "one that is pointed at")
    assert chosen[0].text.startswith("green")


@pytest.mark.parametrize(("width", "height"), [(320, 640), (390, 844), (860, 600), (1280, 900)])
def test_nothing_sticks_out_at_the_side_however_narrow_the_screen(
    driver: Any, site: Site, tmp_path: Path, width: int, height: int
) -> None:
    path = write(tmp_path, f"{'a-very-long-name' * 8}.png", scene(width=200, height=30, red=(0, 0, 180, 30)))
    size = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        choose(driver, path, path, path)
        until(lambda: by_id(driver, "strip").text.count("found") == 3, "three answers")
        wide = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        needed, there = driver.execute_script(wide)
        assert needed <= there
        shown = by_id(driver, "picture").size
        assert shown["width"] <= width and shown["width"] > 0.8 * min(width, 640) - 60
        assert abs(shown["width"] / shown["height"] - 200 / 30) < 0.1
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_light_and_dark(
    driver: Any, site: Site, photo: Path, scheme: str
) -> None:
    """By WCAG's measure, 4.5 and more."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        choose(driver, photo)
        answered(driver, "photo.png")
        pairs = driver.execute_script(
            """const rgb = (text) => text.match(/[0-9.]+/g).map(Number);
            const ground = (one) => {
                for (; one; one = one.parentElement) {
                    const color = rgb(getComputedStyle(one).backgroundColor);
                    if (color.length < 4 || color[3] === 1) return color;
                }
            };
            return arguments[0].map((what) => {
                const one = document.querySelector(what);
                return [what, rgb(getComputedStyle(one).color), ground(one)];
            });""",
            [
                "#status",
                "#found .note",
                "#found .name",
                ".main",
                "#copy-curl",
                "#curl",
                "h1",
                ".hint",
                "#legend",
            ],
        )
        dark = sum(pairs[0][2]) < 200
        assert dark == (scheme == "dark")
        for what, color, ground in pairs:
            light, low = sorted((luminance(color), luminance(ground)), reverse=True)
            assert (light + 0.05) / (low + 0.05) >= 4.5, what
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def luminance(color: list[float]) -> float:
    """WCAG's relative luminance of an sRGB colour of 0 to 255."""
    linear = [
        (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4)
        for one in np.array(color[:3]) / 255
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
