"""The sets of made_set.py."""

from pathlib import Path

import pytest

from tests.training.look.made_set import MadeSets


@pytest.fixture
def made(tmp_path: Path) -> MadeSets:
    return MadeSets(tmp_path)
