"""Categories to choose from on the page, by pointer and by keys, where the server tells them."""

from pathlib import Path
from typing import Any

from tests.browser.conftest import Site
from tests.browser.look import answered, by_id, choose, focused, found, until

KNOWN = [(7, "red"), (11, "green"), (90, "bleu é"), (12, "cup, tea"), (13, "42")]


def offer(driver: Any, site: Site) -> list[Any]:
    """The page, opened anew with the list unfolded; the list's buttons."""
    site.told = {"x-categories": [{"id": id_, "name": name} for id_, name in KNOWN]}
    site.open(driver)
    until(lambda: by_id(driver, "known").is_displayed(), "the list")
    by_id(driver, "known-title").click()
    return buttons(driver)


def buttons(driver: Any) -> list[Any]:
    return list(driver.find_elements("css selector", "#names button"))


def field(driver: Any) -> str:
    return str(by_id(driver, "categories").get_property("value"))


def pressed(driver: Any) -> list[str]:
    chosen = driver.find_elements("css selector", '#names [aria-pressed="true"]')
    return [str(one.get_property("textContent")) for one in chosen]


def test_without_a_document_the_field_stands_alone(driver: Any, site: Site, photo: Path) -> None:
    assert not by_id(driver, "known").is_displayed()
    by_id(driver, "categories").send_keys("green")
    choose(driver, photo)
    answered(driver, "photo.png")
    assert [one[0] for one in found(driver)] == ["green"]


def test_names_that_are_chosen_stand_in_the_field_and_are_asked_for(
    driver: Any, site: Site, photo: Path
) -> None:
    choices = offer(driver, site)
    assert [one.text for one in choices] == [name for _, name in KNOWN]
    assert by_id(driver, "known-title").text == "Choose from 5"
    choices[0].click()
    choices[2].click()
    assert (field(driver), pressed(driver)) == ("red, bleu é", ["red", "bleu é"])
    choose(driver, photo)
    answered(driver, "photo.png")
    assert [one[0] for one in found(driver)] == ["red", "bleu é"]
    choices[0].click()
    until(lambda: len(site.behind.seen) == 2, "a second request")
    assert field(driver) == "bleu é"


def test_a_name_that_the_field_would_read_as_something_else_is_its_id(driver: Any, site: Site) -> None:
    for one in offer(driver, site)[3:]:
        one.click()
    assert (field(driver), pressed(driver)) == ("12, 13", ["cup, tea", "42"])


def test_what_is_typed_narrows_the_list_and_a_choice_completes_it(driver: Any, site: Site) -> None:
    offer(driver, site)
    by_id(driver, "categories").send_keys("green, RE")
    assert [one.get_property("textContent") for one in buttons(driver)] == ["red", "green"]
    buttons(driver)[0].click()
    assert (field(driver), pressed(driver)) == ("green, red", ["red", "green"])
    by_id(driver, "categories").send_keys(", zebra")
    assert buttons(driver) == []
    assert by_id(driver, "names").is_displayed()


def test_the_list_is_one_stop_of_the_tab_key_and_its_keys_choose(driver: Any, site: Site) -> None:
    from selenium.webdriver import ActionChains, Keys

    offer(driver, site)
    driver.execute_script("document.getElementById('categories').focus()")
    for key in (Keys.TAB, Keys.TAB):
        ActionChains(driver).send_keys(key).perform()
    assert focused(driver) == "red"
    ActionChains(driver).send_keys(Keys.ARROW_DOWN, Keys.ENTER, Keys.END, Keys.SPACE).perform()
    assert (field(driver), pressed(driver)) == ("green, 13", ["green", "42"])
    ActionChains(driver).send_keys(Keys.TAB).perform()
    assert focused(driver).split("\n")[0] == "format"
    by_id(driver, "categories").clear()
    by_id(driver, "categories").send_keys("red")
    assert pressed(driver) == ["red"]
