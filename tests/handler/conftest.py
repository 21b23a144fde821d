"""A stand-in for the network, served without a server. TorchServe's package leaves a file open while it is imported;
that is its business, not a failure of a test."""

import warnings
from pathlib import Path

import pytest
import torch

from maskx_model import ServedModel
from maskx_service import Service
from maskx_settings import Limits
from tests.served.standin import write_standin

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)
    import ts.context  # noqa: F401


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its maskx.pt, in a folder of its own."""
    return write_standin(tmp_path_factory.mktemp("standin") / "maskx.pt")


@pytest.fixture
def model(standin: Path) -> ServedModel:
    """It on the CPU."""
    return ServedModel(standin, torch.device("cpu"), precision="float32")


@pytest.fixture
def service(model: ServedModel) -> Service:
    """What answers with it, by the default limits."""
    return Service(model, Limits(), name="maskx", version="1.0")
