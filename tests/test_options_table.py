"""The table of options in docs/training.md: every option and value of the configuration, and a test that is there."""

import re
from pathlib import Path

import pytest

from tests.training.option_rows import AMOUNTS
from tests.training.test_options import choices, in_toml
from training.config import TrainingConfig, flat, to_dict

ROOT = Path(__file__).resolve().parent.parent


def table() -> list[tuple[list[str], str, str]]:
    """Of each line its keys, what is said of them, and the file of tests."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    found = re.search(r"^<!-- options -->\n(.*?)^<!-- /options -->$", page, flags=re.M | re.S)
    assert found, "no table of options in docs/training.md"
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found[1].splitlines()[2:]]
    return [(re.findall(r"`([a-z_.]+)`", keys), said, test.strip("`")) for keys, said, test in lines]


def test_every_option_stands_in_one_line_and_nothing_else_does() -> None:
    named = [key for keys, _, _ in table() for key in keys]
    usual = flat(to_dict(TrainingConfig()))
    assert {key: named.count(key) for key in named if named.count(key) > 1} == {}
    assert set(named) <= set(usual)
    options = set(choices()) | {key for key in usual if not key.startswith(AMOUNTS)}
    assert sorted(options - set(named)) == []


@pytest.mark.parametrize("key", [key for key, values in choices().items() if bool not in map(type, values)])
def test_every_value_of_an_option_stands_in_its_line(key: str) -> None:
    (said,) = (said for keys, said, _ in table() if key in keys)
    missing = [in_toml(value) for value in choices()[key] if f"`{in_toml(value)}`" not in said]
    assert missing == []


def test_every_line_names_a_file_of_tests() -> None:
    assert [test for _, _, test in table() if not re.match(r"tests/.*/test_\w+\.py$", test)] == []
    assert [test for _, _, test in table() if not (ROOT / test).is_file()] == []
