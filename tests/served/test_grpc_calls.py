"""gRPC as others call it: TorchServe's streaming methods, and calls given up, cancelled or closed early."""

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from client.generated import inference_pb2, inference_pb2_grpc
from server.processes import ENGINES, LIGHT
from tests.served.machine import Machine
from tests.served.nginx import until_closed
from tests.served.standin import png, scene

pytestmark = pytest.mark.engines(*ENGINES)

IMAGE = png(scene(width=61, height=47, red=(3, 2, 20, 11), green=(30, 4, 13, 21)))
SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
PATIENCE = 60.0


def request(**fields: bytes) -> Any:
    return inference_pb2.PredictionsRequest(model_name="maskx", input={"data": IMAGE, **fields})


def channel_to(machine: Machine) -> Any:
    return grpc.insecure_channel(f"127.0.0.1:{machine.ports.grpc}")


def streamed(machine: Machine, **fields: bytes) -> list[bytes]:
    """The parts with which StreamPredictions answers."""
    with channel_to(machine) as channel:
        method = channel.unary_stream(
            f"{SERVICE}/StreamPredictions",
            request_serializer=inference_pb2.PredictionsRequest.SerializeToString,
            response_deserializer=inference_pb2.PredictionResponse.FromString,
        )
        return [part.prediction for part in method(request(**fields), timeout=PATIENCE)]


def refusal(ask: Callable[[], Sequence[bytes]]) -> Any:
    """The type of the error in the only part, or the status that came in place of it."""
    try:
        parts = ask()
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined]
    return json.loads(parts[0]).get("error", {}).get("type") if parts else None


@pytest.fixture
def same_worker(server: Machine) -> Callable[[], bool]:
    """Whether the worker of before still runs, and answers; or was lost to TorchServe's own race alone."""
    before, expected, races = server.worker().pid, server.rest().predict(IMAGE), closed_twice(server)

    def still() -> bool:
        assert server.rest().predict(IMAGE) == expected
        return server.worker().pid == before or closed_twice(server) > races

    return still


def closed_twice(machine: Machine) -> int:
    """How often TorchServe closed a gRPC call from two threads at once, which ends its worker.

    One answers the call while the other takes its end from the client (GRPCJob.response between its question
    whether the call was cancelled and its own end of it): a window of microseconds that nothing outside
    TorchServe can close, handler/README.md.
    """
    if machine.running.engine == LIGHT:
        return 0
    log = (machine.state / "logs" / "ts_log.log").read_text()
    return len(re.findall("IllegalStateException: call (?:is|already) closed", log))


def test_stream_predictions_answers_in_one_part_what_predictions_does(
    server: Machine, same_worker: Callable[[], bool]
) -> None:
    assert streamed(server) == [server.grpc().predict(IMAGE)]
    fields = {"mask_format": b"polygon", "max_detections": b"1"}
    assert streamed(server, **fields) == [
        server.grpc().predict(IMAGE, {n: v.decode() for n, v in fields.items()})
    ]
    assert same_worker()


def test_a_bad_stream_request_gets_a_status_and_costs_no_worker(
    server: Machine, same_worker: Callable[[], bool]
) -> None:
    for fields in ({"data": b"?"}, {"max_detections": b"many"}, {"scoer": b"1"}):
        with pytest.raises(grpc.RpcError) as raised:
            streamed(server, **fields)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert same_worker()


def test_streams_share_batches_with_all_others(batched: Machine) -> None:
    """One of them is bad, so that errors travel in a batch of several too."""
    worker, batches = batched.worker().pid, batched.batches()
    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(streamed, batched) for _ in range(3)]
        bad = pool.submit(streamed, batched, data=b"?")
        calls = [pool.submit(batched.grpc().predict, IMAGE) for _ in range(2)]
        posts = [pool.submit(batched.rest().predict, IMAGE) for _ in range(2)]
        expected = posts[0].result()
        assert [one.result() for one in calls + posts[1:]] == [expected] * 3
        assert [one.result() for one in streams] == [[expected]] * 3
        # The status where it was alone in its batch.
        assert refusal(bad.result) in ("InvalidImage", grpc.StatusCode.INVALID_ARGUMENT)
    assert batched.batches() - batches < 8, "nothing was asked together"
    assert batched.worker().pid == worker


@pytest.mark.parametrize("seconds", [0.001, 0.005, 0.02, 0.05])
def test_calls_whose_deadline_passes_cost_nobody_else(
    server: Machine, same_worker: Callable[[], bool], seconds: float
) -> None:
    with channel_to(server) as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        calls = [stub.Predictions.future(request(), timeout=seconds) for _ in range(15)]
        codes = {call.exception() and call.exception().code() for call in calls}
    assert codes <= {None, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert same_worker()


@pytest.mark.parametrize("method", ["Predictions", "StreamPredictions"])
@pytest.mark.parametrize("wait", [0.0, 0.01, 0.03])
def test_calls_cancelled_and_channels_closed_under_way_cost_nobody_else(
    server: Machine, same_worker: Callable[[], bool], wait: float, method: str
) -> None:
    with channel_to(server) as channel:
        if method == "Predictions":
            stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
            calls = [stub.Predictions.future(request(), timeout=PATIENCE) for _ in range(8)]
        else:
            ask = channel.unary_stream(f"{SERVICE}/{method}")
            calls = [ask(request().SerializeToString(), timeout=PATIENCE) for _ in range(8)]
        time.sleep(wait)
        for call in calls[::2]:
            call.cancel()
    assert same_worker()


def test_a_sequence_of_requests_that_is_not_for_this_model_costs_no_worker(
    server: Machine, same_worker: Callable[[], bool]
) -> None:
    with channel_to(server) as channel:
        ask = channel.stream_stream(f"{SERVICE}/StreamPredictions2")
        parts = ask(iter([request().SerializeToString()]), timeout=2)
        with contextlib.suppress(grpc.RpcError):
            list(parts)  # whatever TorchServe says of it, nobody else sees it
    assert same_worker()


@pytest.mark.parametrize(
    "head", ["GET /predictions/maskx HTTP/1.0\r\n\r\n", "POST /predictions/maskx HTTP/1.0\r\n"]
)
def test_a_client_of_http_1_0_without_host_is_not_taken_for_grpc(server: Machine, head: str) -> None:
    body = b"?"
    sent = head.encode() if head.startswith("GET") else head.encode() + b"Content-Length: 1\r\n\r\n" + body
    with socket.create_connection(("127.0.0.1", server.ports.inference), timeout=PATIENCE) as connection:
        connection.sendall(sent)
        received = until_closed(connection)
    start, _, content = received.partition(b"\r\n\r\n")
    assert b" 400 " in start.split(b"\r\n")[0] and b"ts_stream_next" not in start
    assert list(json.loads(content)) == ["error"]
