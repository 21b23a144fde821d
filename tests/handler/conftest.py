"""A stand-in for the network, served without a server. TorchServe's package leaves a file open while it is imported;
that is its business, not a failure of a test."""

import warnings
from pathlib import Path

import pytest
import torch

from maskx_model import ServedModel
from maskx_service import Service
from maskx_settings import Limits

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)
    import ts.context  # noqa: F401


@pytest.fixture
def model(standin: Path) -> ServedModel:
    """The stand-in on the CPU."""
    return ServedModel(standin, torch.device("cpu"), precision="float32")


@pytest.fixture
def service(model: ServedModel) -> Service:
    """What answers with it, by the default limits."""
    return Service(model, Limits(), name="maskx", version="1.0")
