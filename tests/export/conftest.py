"""The tiny network's checkpoint and its exported file, made once."""

from pathlib import Path

import pytest

from tests.export.tiny import run_module, save_network, tiny_network


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny network as training writes it."""
    return save_network(tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt", tiny_network())


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network's maskx.pt, by the command line."""
    out = tmp_path_factory.mktemp("exported") / "build" / "maskx.pt"
    done = run_module("export.torchscript", "--checkpoint", checkpoint, "--out", out, PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    return out
