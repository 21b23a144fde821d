"""A maskx.pt in stages, and what is loaded in the place of a package's libraries."""

from pathlib import Path

import pytest

import maskx_compiled
from tests.handler.compiled.parts import Eager, eager
from tests.served.compiled_standin import (
    write_staged_standin,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A maskx.pt in stages."""
    return write_staged_standin(tmp_path / "maskx.pt")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Eager]:
    """What is loaded in the place of a package's libraries."""
    made = eager()
    monkeypatch.setattr(
        maskx_compiled, "load_libraries", lambda path, parts, device: {part: made[part] for part in parts}
    )
    return made
