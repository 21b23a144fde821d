"""The tiny network's checkpoint and its exported file, made once."""

from pathlib import Path

import pytest

from model.checkpoint import save_checkpoint
from model.config import to_dict
from tests.export.tiny import CLASSES, CONFIG, run_module, tiny_network


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny network as training writes it."""
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt"
    contents = {
        "format": 1,
        "model": tiny_network().state_dict(),
        "model_config": to_dict(CONFIG),
        "training_config": {},
        "classes": CLASSES.to_dict(),
        "step": 0,
    }
    save_checkpoint(path, contents)
    return path


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network's maskx.pt, by the command line."""
    out = tmp_path_factory.mktemp("exported") / "build" / "maskx.pt"
    done = run_module("export.torchscript", "--checkpoint", checkpoint, "--out", out, PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    return out
