"""The client of the served model, over REST and gRPC: a library, a command line, and results for annotation tools."""

from client import flat  # noqa: F401  before what imports the handler's modules

# isort: split
from client.core import AsyncClient, Wishes
from client.errors import (
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
from client.prediction import Detection, Prediction
from client.retry import Retries
from client.sync import Client
from maskx_draw import Window

__all__ = [
    "AnswerTooLarge",
    "AsyncClient",
    "Client",
    "Detection",
    "InvalidImage",
    "InvalidRequest",
    "NotAuthorized",
    "Prediction",
    "Retries",
    "ServerBusy",
    "ServerFailed",
    "ServerRefused",
    "ServerUnreachable",
    "TimedOut",
    "Window",
    "Wishes",
]
