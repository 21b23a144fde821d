"""The client of the served model, over REST and gRPC: a library, a command line, and results for annotation tools."""

from . import flat  # noqa: F401  before what imports the handler's modules

# isort: split
from maskx_draw import Window

from .client import AsyncClient, Client, Parameters
from .errors import (
    AnswerTooLarge,
    InvalidImage,
    InvalidRequest,
    NotAuthorized,
    ServerBusy,
    ServerFailed,
    ServerRefused,
    ServerUnreachable,
    TimedOut,
)
from .prediction import Detection, Prediction
from .retry import Retries

__all__ = [
    "AnswerTooLarge",
    "AsyncClient",
    "Client",
    "Detection",
    "InvalidImage",
    "InvalidRequest",
    "NotAuthorized",
    "Parameters",
    "Prediction",
    "Retries",
    "ServerBusy",
    "ServerFailed",
    "ServerRefused",
    "ServerUnreachable",
    "TimedOut",
    "Window",
]
