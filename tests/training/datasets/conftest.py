"""A server of files on loopback, which no proxy of the environment is asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.datasets.file_server import Behaviour, serving


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Behaviour]]:
    """(address, behaviour) of a server of the folder `served`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as (address, behaviour):
        yield address, behaviour
