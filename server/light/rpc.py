"""gRPC: TorchServe's inference service, with true statuses, and the Open Inference Protocol, version 2.

An inference of the latter goes to the handler as KServe's binary tensor data extension has it over REST: JSON, and
behind it the elements as they are. So the handler reads both in one way.
"""

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from .answers import Answered, Refusal
from .models import Models
from .rest import model_metadata, refused, server_metadata

MESSAGES = Path(__file__).with_name("generated") / "messages.bin"
TORCHSERVE = "org.pytorch.serve.grpc.inference"
OPEN_INFERENCE = "inference"
STATUS_OF = {
    200: grpc.StatusCode.OK,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC's code for HTTP's; INTERNAL for all others."""
ELEMENT = 4
"""Bytes of the length before each element of BYTES."""

Context = grpc.aio.ServicerContext[Any, Any]
Call = Callable[[Any, Context], Any]


class Messages:
    """The classes of all messages, kept apart from those of other packages that speak the same protocols."""

    def __init__(self) -> None:
        """Raises ValueError: their description was not made."""
        if not MESSAGES.is_file():
            raise ValueError(f"there is no {MESSAGES}; make it with python -m client.compile_proto")
        self._pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(MESSAGES.read_bytes()).file:
            self._pool.Add(file)

    def named(self, name: str) -> Any:
        """The class of the message with this full name."""
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))

    def handler(self, service: str, methods: Mapping[str, Call]) -> grpc.GenericRpcHandler:
        """What answers the calls of a service, each named method by its function."""
        described = self._pool.FindServiceByName(service)
        calls = {}
        for name, call in methods.items():
            method = described.methods_by_name[name]
            calls[name] = grpc.unary_unary_rpc_method_handler(
                call,
                request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
                response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(service, calls)


class InferenceApis:
    """TorchServe's service: Ping, Predictions, and StreamPredictions, which answers in one part."""

    def __init__(self, models: Models, messages: Messages) -> None:
        self._models = models
        self._messages = messages
        self._request = messages.named(f"{TORCHSERVE}.PredictionsRequest")
        self._response = messages.named(f"{TORCHSERVE}.PredictionResponse")
        self._health = messages.named(f"{TORCHSERVE}.TorchServeHealthResponse")

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """All of its calls."""
        service = f"{TORCHSERVE}.InferenceAPIsService"
        streamed = grpc.unary_stream_rpc_method_handler(
            self.stream,
            request_deserializer=self._request.FromString,
            response_serializer=self._response.SerializeToString,
        )
        return [
            self._messages.handler(service, {"Predictions": self.predict, "Ping": self.ping}),
            grpc.method_handlers_generic_handler(service, {"StreamPredictions": streamed}),
        ]

    async def predict(self, request: Any, context: Context) -> Any:
        """The prediction, or the error as the call's status."""
        return await self._predicted("Predictions", request, context)

    async def stream(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """The same in a stream of one part."""
        yield await self._predicted("StreamPredictions", request, context)

    async def ping(self, request: Any, context: Context) -> Any:
        """Healthy where a prediction can be answered."""
        return self._health(health="Unhealthy" if self._models.not_ready() else "Healthy")

    async def _predicted(self, method: str, request: Any, context: Context) -> Any:
        called = f"{TORCHSERVE}.InferenceAPIsService/{method}"
        answer = await _asked(self._models, called, request, dict(request.input), {}, context)
        return self._response(prediction=answer.body)


class OpenInference:
    """The Open Inference Protocol's service."""

    def __init__(self, models: Models, messages: Messages, version: str) -> None:
        """`version` is the server's own."""
        self._models = models
        self._messages = messages
        self._version = version

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """All of its calls."""
        calls: dict[str, Call] = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.model_infer,
        }
        return [self._messages.handler(f"{OPEN_INFERENCE}.GRPCInferenceService", calls)]

    async def server_live(self, request: Any, context: Context) -> Any:
        """It runs."""
        return self._new("ServerLiveResponse", live=True)

    async def server_ready(self, request: Any, context: Context) -> Any:
        """Whether a prediction can be answered."""
        return self._new("ServerReadyResponse", ready=not self._models.not_ready())

    async def server_metadata(self, request: Any, context: Context) -> Any:
        """Name, version, extensions."""
        return self._new("ServerMetadataResponse", **server_metadata(self._version))

    async def model_ready(self, request: Any, context: Context) -> Any:
        """Whether this version has a worker that is ready."""
        try:
            ready = self._models.find(request.name, request.version).ready
        except Refusal as refusal:
            await _abort(context, refusal.status, refusal.body(), refusal.retry_after)
        return self._new("ModelReadyResponse", ready=ready)

    async def model_metadata(self, request: Any, context: Context) -> Any:
        """Versions, platform, tensors."""
        try:
            content = model_metadata(self._models, request.name, request.version)
        except Refusal as refusal:
            await _abort(context, refusal.status, refusal.body(), refusal.retry_after)
        return self._new("ModelMetadataResponse", **content)

    async def model_infer(self, request: Any, context: Context) -> Any:
        """The prediction of the images in a tensor of BYTES; the JSON of each is an element of one, too."""
        body, length = infer_body(request)
        headers = {"inference-header-content-length": str(length)}
        called = f"{OPEN_INFERENCE}.GRPCInferenceService/ModelInfer"
        answer = await _asked(self._models, called, request, {"body": body}, headers, context)
        content = json.loads(answer.body)
        made = self._new(
            "ModelInferResponse",
            **{name: content.get(name, "") for name in ("model_name", "model_version", "id")},
        )
        for output in content["outputs"]:
            made.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
            made.raw_output_contents.append(packed([one.encode() for one in output["data"]]))
        return made

    def _new(self, message: str, **fields: Any) -> Any:
        return self._messages.named(f"{OPEN_INFERENCE}.{message}")(**fields)


def infer_body(request: Any) -> tuple[bytes, int]:
    """A ModelInferRequest as the body of REST that means the same, and how many of its bytes are JSON."""
    inputs, binary = [], []
    for place, tensor in enumerate(request.inputs):
        raw = request.raw_input_contents
        data = raw[place] if place < len(raw) else packed(tensor.contents.bytes_contents)
        parameters = {**_values(tensor.parameters), "binary_data_size": len(data)}
        named = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        inputs.append({**named, "parameters": parameters})
        binary.append(data)
    content: dict[str, Any] = {"inputs": inputs, "parameters": _values(request.parameters)}
    if request.id:
        content["id"] = request.id
    if request.outputs:
        content["outputs"] = [{"name": one.name} for one in request.outputs]
    text = json.dumps(content).encode()
    return b"".join([text, *binary]), len(text)


def packed(elements: Sequence[bytes]) -> bytes:
    """A tensor of BYTES: of each element the length, the lowest byte first, and itself."""
    return b"".join(part for one in elements for part in (len(one).to_bytes(ELEMENT, "little"), one))


def server(
    models: Models, address: str, *, version: str, max_request_size: int, tls: tuple[Path, Path] | None = None
) -> tuple[grpc.aio.Server, int]:
    """A server of both services that is not yet started, and its port.

    Args: address: HOST:PORT. version: the server's own. tls: files of certificate and key.

    Raises ValueError: the address cannot be had.
    """
    messages = Messages()
    options = [
        ("grpc.max_receive_message_length", max_request_size),
        ("grpc.max_send_message_length", -1),  # the handler bounds its answers itself
        ("grpc.so_reuseport", 0),
    ]
    made = grpc.aio.server(options=options)
    for handlers in (
        InferenceApis(models, messages).handlers(),
        OpenInference(models, messages, version).handlers(),
    ):
        made.add_generic_rpc_handlers(handlers)
    try:
        if tls is None:
            return made, made.add_insecure_port(address)
        pair = (tls[1].read_bytes(), tls[0].read_bytes())
        return made, made.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        raise ValueError(f"gRPC cannot listen on {address}: {error}") from error


def status_of(status: int) -> grpc.StatusCode:
    """gRPC's code for HTTP's status."""
    return STATUS_OF.get(status, grpc.StatusCode.INTERNAL)


async def _asked(
    models: Models,
    method: str,
    request: Any,
    fields: dict[str, bytes],
    headers: dict[str, str],
    context: Context,
) -> Answered:
    """The answer, where it is a prediction; else the call ends with the error as its status and text."""
    begin, answer, retry_after = time.monotonic(), None, None
    try:
        pool = models.find(request.model_name, request.model_version)
        answer = await pool.ask(fields, headers, by_grpc=True)
    except Refusal as refusal:
        answer, retry_after = refused(refusal), refusal.retry_after
    finally:
        if models.traces is not None:
            code = "CANCELLED" if answer is None else status_of(answer.status).name
            models.traces.call(method, context.invocation_metadata(), begin, code, answer)
    if answer.status != 200:
        await _abort(context, answer.status, answer.body, retry_after)
    return answer


async def _abort(context: Context, status: int, body: bytes, retry_after: int | None) -> None:
    trailing = () if retry_after is None else (("retry-after", str(retry_after)),)
    await context.abort(status_of(status), body.decode(), trailing)


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON has them; one without a value is ""."""
    choice = "parameter_choice"
    return {name: getattr(one, one.WhichOneof(choice) or "string_param") for name, one in parameters.items()}
