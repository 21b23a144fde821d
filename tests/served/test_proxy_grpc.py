"""gRPC through the proxy with the real nginx: true statuses, the handler's error object as the message, TLS, HTTP/2."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import pytest

from client.errors import ServerRefused
from client.generated import inference_pb2, inference_pb2_grpc
from server.processes import free_ports
from tests.served.asking import Once
from tests.served.nginx import MANY, SECRET, Proxy, proxy

LARGE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass
class GrpcUpstream(inference_pb2_grpc.InferenceAPIsServiceServicer):
    """In TorchServe's place: gives the image back, or aborts as the entry `abort` says."""

    address: str = ""
    seen: list[tuple[int, dict[str, str]]] = field(default_factory=list)

    def Predictions(  # type: ignore[override]
        self, request: inference_pb2.PredictionsRequest, context: grpc.ServicerContext
    ) -> inference_pb2.PredictionResponse:
        metadata = {str(name): str(value) for name, value in context.invocation_metadata()}
        self.seen.append((len(request.input["data"]), metadata))
        if "abort" in request.input:
            context.abort(grpc.StatusCode[request.input["abort"].decode()], '{"error":"as it was"}')
        return inference_pb2.PredictionResponse(prediction=request.input["data"])


@contextmanager
def grpc_upstream() -> Iterator[GrpcUpstream]:
    servicer = GrpcUpstream()
    server = grpc.server(ThreadPoolExecutor(8), options=LARGE)
    inference_pb2_grpc.add_InferenceAPIsServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield servicer
    finally:
        server.stop(None).wait()


@pytest.fixture(scope="module")
def behind() -> Iterator[GrpcUpstream]:
    with grpc_upstream() as made:
        yield made


@pytest.fixture(scope="module")
def front(behind: GrpcUpstream) -> Iterator[Proxy]:
    with proxy(GRPC=behind.address, BODY_TIMEOUT="1s") as made:
        yield made


@pytest.fixture(autouse=True)
def unseen(behind: GrpcUpstream) -> None:
    behind.seen.clear()


def call(
    port: int,
    data: bytes = b"image",
    *,
    secret: str | None = SECRET,
    method: str = "inference.InferenceAPIsService/Predictions",
    channel: grpc.Channel | None = None,
    **entries: bytes,
) -> tuple[grpc.StatusCode, str]:
    """The call's status, and its details or the prediction."""
    request = inference_pb2.PredictionsRequest(model_name="maskx", input={"data": data, **entries})
    metadata = () if secret is None else (("authorization", f"Bearer {secret}"),)
    made = channel or grpc.insecure_channel(f"127.0.0.1:{port}", options=LARGE)
    stub = made.unary_unary(
        f"/org.pytorch.serve.grpc.{method}",
        request_serializer=inference_pb2.PredictionsRequest.SerializeToString,
        response_deserializer=inference_pb2.PredictionResponse.FromString,
    )
    try:
        return grpc.StatusCode.OK, stub(request, metadata=metadata, timeout=60).prediction.decode()
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    finally:
        if channel is None:
            made.close()


def error_of(details: str) -> dict[str, object]:
    content = json.loads(details)
    assert list(content) == ["error"] and list(content["error"]) == ["code", "type", "message"], content
    found: dict[str, object] = content["error"]
    return found


def test_a_prediction_passes_and_torchserve_sees_the_ids_but_no_secret(
    front: Proxy, behind: GrpcUpstream
) -> None:
    assert call(front.grpc_port) == (grpc.StatusCode.OK, "image")
    ((_, metadata),) = behind.seen
    assert "authorization" not in metadata and SECRET not in str(metadata)
    assert len(metadata["x-request-id"]) == 32


def test_our_client_works_through_it_and_translates_its_errors(front: Proxy) -> None:
    url = f"grpc://127.0.0.1:{front.grpc_port}"
    assert Once(url, SECRET).predict(b"x" * 5_000_000) == b"x" * 5_000_000
    with pytest.raises(ServerRefused, match="Authorization: Bearer"):
        Once(url, "wrong").predict(b"x")


@pytest.mark.parametrize("status", ["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL"])
def test_the_servers_own_statuses_pass_as_they_are(front: Proxy, status: str) -> None:
    code, details = call(front.grpc_port, abort=status.encode())
    assert (code.name, details) == (status, '{"error":"as it was"}')


@pytest.mark.parametrize("secret", [None, "", SECRET[1:], SECRET.upper()])
def test_without_the_secret_it_is_unauthenticated(
    front: Proxy, behind: GrpcUpstream, secret: str | None
) -> None:
    code, details = call(front.grpc_port, secret=secret)
    assert code == grpc.StatusCode.UNAUTHENTICATED and behind.seen == []
    assert error_of(details)["code"] == 401 and error_of(details)["type"] == "Unauthenticated"


def test_a_message_above_the_limit_is_resource_exhausted(front: Proxy, behind: GrpcUpstream) -> None:
    code, details = call(front.grpc_port, bytes(40_000_000))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED and error_of(details)["type"] == "RequestTooLarge"
    assert behind.seen == [] and call(front.grpc_port)[0] == grpc.StatusCode.OK


@pytest.mark.parametrize(
    "method",
    [
        "inference.InferenceAPIsService/Ping",
        "inference.InferenceAPIsService/StreamPredictions",
        "management.ManagementAPIsService/RegisterModel",
        "management.ManagementAPIsService/ListModels",
    ],
)
def test_every_other_method_is_unimplemented(front: Proxy, behind: GrpcUpstream, method: str) -> None:
    assert call(front.grpc_port, method=method)[0] == grpc.StatusCode.UNIMPLEMENTED and behind.seen == []


def test_more_calls_than_the_rate_allows_are_resource_exhausted(behind: GrpcUpstream) -> None:
    with proxy(GRPC=behind.address, RATE="1", BURST="1") as made:
        answers = [call(made.grpc_port)]
        while answers[-1][0] == grpc.StatusCode.OK and len(answers) < MANY:
            answers.append(call(made.grpc_port))
    *allowed, (code, details) = answers
    assert len(allowed) >= 2
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED and error_of(details)["type"] == "TooManyRequests"


def test_an_address_that_is_not_allowed_is_permission_denied(behind: GrpcUpstream) -> None:
    with proxy(GRPC=behind.address, ALLOW="10.0.0.0/8") as made:
        code, details = call(made.grpc_port)
    assert code == grpc.StatusCode.PERMISSION_DENIED and error_of(details)["code"] == 403


def test_a_server_that_is_not_there_is_unavailable_and_a_silent_one_past_its_deadline() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, proxy(GRPC=f"127.0.0.1:{silent.getsockname()[1]}", ANSWER_TIMEOUT="1s") as made:
        code, details = call(made.grpc_port)
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED and error_of(details)["type"] == "Timeout"
        silent.close()
        code, details = call(made.grpc_port)
        assert code == grpc.StatusCode.UNAVAILABLE and error_of(details)["type"] == "Unreachable"


def test_over_tls_grpc_and_rest_share_a_port(behind: GrpcUpstream) -> None:
    with proxy(GRPC=behind.address, INFERENCE=f"127.0.0.1:{free_ports().inference}", TLS="on") as made:
        credentials = grpc.ssl_channel_credentials((made.folder / "certificate.pem").read_bytes())
        with grpc.secure_channel(f"localhost:{made.port}", credentials) as channel:
            assert call(made.port, channel=channel) == (grpc.StatusCode.OK, "image")
            assert call(made.port, channel=channel, secret="no")[0] == grpc.StatusCode.UNAUTHENTICATED
        assert made.ask().status == 502


def test_calls_at_once_over_one_connection_all_come_back(front: Proxy) -> None:
    images = [f"{i}-".encode() * 50_000 for i in range(24)]
    with (
        grpc.insecure_channel(f"127.0.0.1:{front.grpc_port}", options=LARGE) as channel,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda image: call(0, image, channel=channel), images))
    assert [answer.encode() for _, answer in answers] == images
