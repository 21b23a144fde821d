"""The served model over gRPC; the answers are the same bytes as over REST."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import grpc

from client.errors import ServerRefused, error_in, unreachable

try:
    from client.generated import inference_pb2, inference_pb2_grpc
except ImportError as missing:
    raise ImportError("client/generated is not made yet; run python -m client.compile_proto") from missing

DEFAULT_ADDRESS = "127.0.0.1:7070"
MAX_MESSAGE_BYTES = 64 * 2**20
"""gRPC's own limit of 4 MiB is less than the server may send."""

STATUS_OF = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 422,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""HTTP's code for gRPC's; 500 for all others."""


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
        self._model = model
        self._metadata = [("protocol", "gRPC"), ("authorization", f"Bearer {token}")] if token else []
        self._timeout = timeout
        options = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ]
        self._channel = grpc.insecure_channel(address, options=options)
        self._stub = inference_pb2_grpc.InferenceAPIsServiceStub(self._channel)

    def predict(self, image: bytes, parameters: Mapping[str, object] | None = None) -> bytes:
        """The answer's body for an encoded image, as `RestClient.predict`.

        TorchServe gives a true gRPC status to a bad image only where it was alone in its batch; else the error stands
        in the body. Either way it is raised here.

        Raises:
            ServerRefused: the server answered with an error.
            ServerUnreachable: nobody answered.
        """
        entries = {name: str(value).encode() for name, value in (parameters or {}).items()}
        request = inference_pb2.PredictionsRequest(model_name=self._model, input={**entries, "data": image})
        try:
            answer = self._stub.Predictions(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._translated(error) from error
        body: bytes = answer.prediction
        refused = error_in(body)
        if refused is not None:
            raise refused
        return body

    def _translated(self, error: grpc.RpcError) -> Exception:
        details = str(error.details()).partition("\n")[0]  # the second line names a class of TorchServe's
        code = error.code()
        refused = error_in(details.encode())
        if refused is not None:
            return refused
        if code == grpc.StatusCode.UNAVAILABLE:
            return unreachable(self.address, details)
        return ServerRefused(STATUS_OF.get(code, 500), code.name, details)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> GrpcClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
