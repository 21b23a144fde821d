"""One attempt over gRPC; the answers are the same bytes as over REST."""

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from pathlib import Path

from .errors import ServerRefused, TimedOut, error_in, refused, unreachable
from .retry import Failure, seconds_of
from .transport import Fields, Target, field_names

try:
    import google.protobuf  # noqa: F401  the generated code needs it
    import grpc
except ImportError as missing:
    raise ImportError(f'gRPC needs more packages ({missing}); run pip install "maskx[grpc]"') from missing
try:
    from .generated import inference_pb2, inference_pb2_grpc
except ImportError as missing:
    raise ImportError("client/generated is not made yet; run python -m client.compile_proto") from missing

MAX_MESSAGE_BYTES = 64 * 2**20
"""gRPC's own limit of 4 MiB is less than the server may send."""

OPTIONS = [
    *((f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("send", "receive")),
    # asking again is decided in client/retry.py alone; a server that is back must then be found at once
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
]

STATUS_OF = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNIMPLEMENTED: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 422,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""HTTP's code for gRPC's; 500 for all others."""


def open_channel(target: Target) -> grpc.Channel:
    """A channel to the target, encrypted for grpcs://; connects with the first call."""
    if target.scheme == "grpc":
        return grpc.insecure_channel(target.authority, options=OPTIONS)
    trusted = target.ca
    if trusted is not None:
        target.tls()  # says what is wrong with the file, which gRPC would not
    elif (system := ssl.get_default_verify_paths().cafile) is not None:
        trusted = Path(system)
    roots = None if trusted is None else trusted.read_bytes()
    return grpc.secure_channel(target.authority, grpc.ssl_channel_credentials(roots), options=OPTIONS)


class GrpcTransport:
    """Predictions of TorchServe's inference service.

    The calls run in grpc's own threads and are handed to the event loop. With grpc.aio (1.85) the loops of a process,
    such as that of each synchronous `Client`, disturb each other: calls fail, and "Event loop is closed" is raised.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._channel = open_channel(target)
        # TorchServe wants both; a proxy reads `authorization` alone
        token = [("protocol", "gRPC"), ("authorization", f"Bearer {target.token}")]
        self._metadata = token if target.token else []
        self._stub = inference_pb2_grpc.InferenceAPIsServiceStub(self._channel)

    async def send(self, images: Sequence[bytes], fields: Fields, seconds: float) -> bytes:
        """As `Transport.send`."""
        entries = {name: value.encode() for name, value in fields.items()}
        entries.update(zip(field_names(len(images)), images, strict=True))
        request = inference_pb2.PredictionsRequest(
            model_name=self._target.model, model_version=self._target.version, input=entries
        )
        call = self._stub.Predictions.future(request, timeout=seconds, metadata=self._metadata)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not done.done():
                done.set_result(None)

        def ended(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed, and nobody waits any more
                loop.call_soon_threadsafe(wake)

        call.add_done_callback(ended)
        try:
            await done
        finally:
            call.cancel()  # of no effect where it is done
        try:
            body: bytes = call.result().prediction
        except grpc.RpcError as error:
            raise failure(error, self._target.url, seconds) from error
        return checked(body)

    async def aclose(self) -> None:
        """Closes the connection."""
        self._channel.close()


def checked(body: bytes) -> bytes:
    """The body where it is an answer.

    TorchServe gives a true gRPC status to a bad image only where it was alone in its batch; else the error stands in
    the body. Raises ServerRefused: the body is an error.
    """
    if body.startswith(b'{"error"') and (found := error_in(body)) is not None:
        raise found
    return body


def failure(error: grpc.RpcError, url: str, seconds: float) -> Failure:
    """What a call that failed means, in the classes that REST's failures have."""
    details = str(error.details()).partition("\n")[0]  # the second line names a class of TorchServe's
    code = error.code()
    after = [one.value for one in error.trailing_metadata() or () if one.key == "retry-after"]
    retry_after = seconds_of(str(after[0])) if after else None
    found = error_in(details.encode(), retry_after=retry_after)
    if found is not None:
        return found
    if code == grpc.StatusCode.DEADLINE_EXCEEDED and "Deadline Exceeded" in details:  # this side's own words
        return TimedOut(f"no answer from {url} within {seconds:.3g} s")
    return _refusal(code, details, url, retry_after)


def _refusal(
    code: grpc.StatusCode, details: str, url: str, retry_after: float | None
) -> ServerRefused | Failure:
    if code == grpc.StatusCode.UNAVAILABLE and retry_after is None and _of_the_network(details):
        return unreachable(url, details)
    status = STATUS_OF.get(code, 500)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        status = 413
    # TorchServe says INTERNAL where its queue is full, and a proxy's RST_STREAM is a server that went away
    if code == grpc.StatusCode.INTERNAL and ("no worker to serve" in details or "RST_STREAM" in details):
        status = 503
    if code == grpc.StatusCode.CANCELLED:
        details += "; TorchServe cancels a request that is larger than its max_request_size"
    return refused(status, code.name, details, retry_after=retry_after)


def _of_the_network(details: str) -> bool:
    """Whether gRPC itself says UNAVAILABLE, not the server."""
    connection = ("connect", "Socket", "socket", "reset", "closed", "handshake")
    return any(sign in details for sign in (*connection, "GOAWAY", "recvmsg", "sendmsg", "DNS"))
