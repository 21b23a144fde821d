"""The served model over gRPC, plainly: one attempt, and the answer's bytes. `Client` asks again and returns values."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import grpc

from client.grpc_transport import (
    checked,
    failure,
    inference_pb2_grpc,
    metadata,
    open_channel,
    prediction_request,
)
from client.transport import Target

DEFAULT_ADDRESS = "127.0.0.1:7070"


class GrpcClient:
    """Predictions of one model on one server, over one connection; may be shared by threads, and is to be closed.

    Args:
        address: host:port of TorchServe's gRPC inference API.
        model: the model's name on the server.
        token: for a server that asks for one.
        timeout: seconds that an answer may take.
    """

    def __init__(
        self, address: str = DEFAULT_ADDRESS, *, model: str = "maskx", token: str = "", timeout: float = 120.0
    ) -> None:
        self.address = address
        self._target = Target(url=f"grpc://{address}", model=model, token=token)
        self._timeout = timeout
        self._channel = open_channel(self._target)
        self._stub = inference_pb2_grpc.InferenceAPIsServiceStub(self._channel)

    def predict(self, image: bytes, parameters: Mapping[str, object] | None = None) -> bytes:
        """The answer's body for an encoded image, as `RestClient.predict`.

        Raises:
            ServerRefused: the server answered with an error.
            ServerUnreachable: nobody answered.
            TimedOut: not within the time.
        """
        texts = {name: str(value) for name, value in (parameters or {}).items()}
        request = prediction_request(self._target, [image], texts)
        try:
            answer = self._stub.Predictions(request, timeout=self._timeout, metadata=metadata(self._target))
        except grpc.RpcError as error:
            raise failure(error, self.address, self._timeout) from error
        return checked(answer.prediction)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> GrpcClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
