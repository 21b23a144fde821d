"""Spans of predictions, as a collector of our own gets them by OTLP from a front in a process of its own."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from client.generated import inference_pb2, inference_pb2_grpc
from server.light.traces import ENDPOINTS, traces_of
from tests.served.light.conftest import Start
from tests.served.machine import Machine, serving
from tests.served.nginx import Reply, wait_until
from tests.served.standin import png, scene

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
PARTS = ["queue", "decode", "network", "encode"]
PREDICTIONS = "org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"


class Collector:
    """What came, the headers that it came with, and the status that it is answered with."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.status = 200
        self.tries = 0
        self.headers: dict[str, str] = {}
        self.resource: dict[str, Any] = {}
        self.spans: list[Span] = []

    def take(self, headers: dict[str, str], body: bytes) -> None:
        self.tries += 1
        self.headers = headers
        if self.status == 200:
            for one in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resource = values(one.resource.attributes)
                self.spans += [span for scope in one.scope_spans for span in scope.spans]

    def requests(self, count: int = 1) -> list[Span]:
        """The spans of requests in the order of their begin, once there are as many; not that of the start's own."""
        wait_until(lambda: len(self.of_servers()) > count)
        return sorted(self.of_servers(), key=lambda one: one.start_time_unix_nano)[1:]

    def of_servers(self) -> list[Span]:
        return [one for one in self.spans if one.kind == Span.SPAN_KIND_SERVER]

    def parts(self, request: Span) -> list[Span]:
        """The spans in a request's, in the order of their begin."""
        found = [one for one in self.spans if one.parent_span_id == request.span_id]
        return sorted(found, key=lambda one: (one.start_time_unix_nano, one.end_time_unix_nano))


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            taker.take(dict(self.headers), self.rfile.read(int(self.headers["content-length"])))
            self.send_response(taker.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        taker = Collector(server)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield taker
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Named by the environment."""
    with collecting() as made:
        point_at(monkeypatch, made.url)
        yield made


def point_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")


def predicted(machine: Machine, body: bytes = b"a", **headers: str) -> Reply:
    return machine.ask(body, {"Content-Type": "image/png", **headers})


def by_grpc(
    machine: Machine, body: bytes, *metadata: tuple[str, str], timeout: float = 60.0
) -> grpc.StatusCode:
    with grpc.insecure_channel(f"127.0.0.1:{machine.ports.grpc}") as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        request = inference_pb2.PredictionsRequest(model_name="maskx", input={"data": body})
        try:
            stub.Predictions(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
            return code
        return grpc.StatusCode.OK


def events(machine: Machine, said: str) -> list[dict[str, Any]]:
    lines = (machine.state / "logs" / "light.log").read_text().splitlines()
    return [one for one in map(json.loads, lines) if said in one["event"]]


def is_within(inner: Span, outer: Span) -> bool:
    begin, end = inner.start_time_unix_nano, inner.end_time_unix_nano
    return outer.start_time_unix_nano <= begin <= end <= outer.end_time_unix_nano


def seconds(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def test_a_request_has_a_span_and_its_parts_follow_one_another_within_it(
    start: Start, collector: Collector
) -> None:
    before, machine = time.time(), start()
    reply = predicted(machine, b"slow")
    (request,) = collector.requests()
    parts = collector.parts(request)
    assert [one.name for one in parts] == PARTS
    assert all(is_within(one, request) and one.trace_id == request.trace_id for one in parts)
    assert all(a.end_time_unix_nano <= b.start_time_unix_nano for a, b in pairwise(parts))
    assert before <= request.start_time_unix_nano / 1e9 <= request.end_time_unix_nano / 1e9 <= time.time()
    # "slow" takes 0.4 seconds, of which half are the network's
    assert seconds(parts[2]) >= 0.2 and 0.4 <= sum(map(seconds, parts[1:])) <= seconds(request)
    assert (request.name, request.parent_span_id) == ("POST /predictions/maskx", b"")
    assert request.status.code == Status.STATUS_CODE_UNSET
    assert values(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/predictions/maskx",
        "http.response.status_code": 200,
        "url.path": "/predictions/maskx",
        "url.scheme": "http",
        "maskx.request_id": reply.headers["x-request-id"],
        "maskx.version": "1.0",
        "maskx.batch_size": 1,
    }


def test_a_networks_worker_says_how_long_its_parts_took(
    standin_archive: Callable[..., Path], tmp_path: Path, collector: Collector
) -> None:
    archive = standin_archive("traced", batchSize=1)
    with serving(tmp_path / "machine", archive, "--engine", "light") as machine:
        assert predicted(machine, png(scene())).status == 200
        (request,) = collector.requests()
    parts = collector.parts(request)
    assert [one.name for one in parts] == PARTS
    assert all(is_within(one, request) and seconds(one) > 0 for one in parts)


def test_a_traceparent_is_taken_over_from_headers_and_from_metadata_and_a_malformed_one_is_not(
    start: Start, collector: Collector
) -> None:
    machine = start()
    predicted(machine, TraceParent=TRACEPARENT)
    by_grpc(machine, b"a", ("traceparent", TRACEPARENT), ("x-request-id", "mine"))
    predicted(machine, TraceParent="00-nonsense")
    rest, called, alone = collector.requests(3)
    for one in (rest, called):
        assert (one.trace_id.hex(), one.parent_span_id.hex()) == (TRACE, PARENT)
        assert {inner.trace_id.hex() for inner in collector.parts(one)} == {TRACE}
    assert alone.trace_id.hex() != TRACE and alone.parent_span_id == b""
    assert values(called.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": PREDICTIONS,
        "rpc.response.status_code": "OK",
        "maskx.request_id": "mine",
        "maskx.version": "1.0",
        "maskx.batch_size": 1,
    }
    assert called.name == PREDICTIONS and [one.name for one in collector.parts(called)] == PARTS


def test_a_trace_that_its_beginner_does_not_keep_is_not_sent(start: Start, collector: Collector) -> None:
    machine = start()
    predicted(machine, TraceParent=TRACEPARENT[:-1] + "0")
    predicted(machine)
    (only,) = collector.requests()
    assert only.parent_span_id == b""


def test_the_servers_failures_are_errors_and_the_askers_are_not(start: Start, collector: Collector) -> None:
    machine = start(config="{batchSize: 1}")
    for ask in (b"wrong", b"die"):
        predicted(machine, ask)
        by_grpc(machine, ask)
    told = [
        (
            one.status.code,
            one.status.message,
            values(one.attributes).get("http.response.status_code"),
            values(one.attributes).get("rpc.response.status_code"),
            values(one.attributes)["error.type"],
            len(collector.parts(one)),
        )
        for one in collector.requests(4)
    ]
    unset, error = Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR
    assert told == [
        (unset, "", 400, None, "BadImage", 4),
        (unset, "", None, "INVALID_ARGUMENT", "BadImage", 4),
        (error, "WorkerDied", 503, None, "WorkerDied", 0),
        (error, "WorkerDied", None, "UNAVAILABLE", "WorkerDied", 0),
    ]


def test_who_hangs_up_and_who_names_no_model_have_a_span(start: Start, collector: Collector) -> None:
    machine = start(config="{batchSize: 1}")
    machine.ask(b"a", path="/predictions/none/2")
    assert by_grpc(machine, b"slow", timeout=0.2) == grpc.StatusCode.DEADLINE_EXCEEDED
    none, gone = collector.requests(2)
    assert (none.name, values(none.attributes)["http.response.status_code"]) == (
        "POST /predictions/maskx/{version}",
        404,
    )
    assert values(none.attributes)["url.path"] == "/predictions/none/2"
    told = values(gone.attributes)
    assert (told["rpc.response.status_code"], told["error.type"]) == ("CANCELLED", "ClientGone")


def test_a_request_that_outlives_a_worker_says_so_and_waited_until_the_second_was_asked(
    start: Start, collector: Collector
) -> None:
    machine = start(config="{batchSize: 1}")
    worker = machine.worker()
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(predicted, machine, b"slow")
        wait_until(lambda: machine.management().default().pending >= 1)
        worker.kill()
        assert sent.result().status == 200
    (request,) = collector.requests()
    assert values(request.attributes)["maskx.worker_deaths"] == 1
    assert [one.name for one in collector.parts(request)] == PARTS


def test_two_requests_of_one_batch_say_so_and_waited_until_the_same_moment(
    start: Start, collector: Collector
) -> None:
    machine = start(config="{batchSize: 2, maxBatchDelay: 5000, lanes: 2}")
    with ThreadPoolExecutor(3) as pool:
        pool.submit(predicted, machine, b"wait")  # until "go": beside it others are waited for
        wait_until(lambda: machine.management().default().pending >= 1)
        replies = list(pool.map(lambda body: predicted(machine, body), (b"go", b"slow")))
    assert [json.loads(one.body)["together"] for one in replies] == ["2", "2"]
    both = [one for one in collector.requests(3) if values(one.attributes)["maskx.batch_size"] > 1]
    assert [values(one.attributes)["maskx.batch_size"] for one in both] == [2, 2]
    assert len({one.trace_id for one in both}) == 2
    waits, networks = ([collector.parts(one)[place] for one in both] for place in (0, 2))
    assert [one.name for one in waits + networks] == ["queue"] * 2 + ["network"] * 2
    assert abs(waits[0].end_time_unix_nano - waits[1].end_time_unix_nano) < 1e6  # read off two clocks
    assert round(seconds(networks[0]), 3) == round(seconds(networks[1]), 3)


def test_the_last_spans_are_sent_when_the_server_ends(
    start: Start, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    machine = start()
    predicted(machine)
    assert collector.spans == []
    machine.end()
    assert len(collector.requests()) == 1


def test_a_collector_that_is_down_costs_no_request_anything_and_one_line_until_it_is_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as gone:
        point_at(monkeypatch, gone.url)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")  # the others are thrown away
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    machine = start()
    assert [predicted(machine).status for _ in range(50)] == [200] * 50
    wait_until(lambda: len(events(machine, "traces are not sent")) == 1)
    with collecting(int(gone.url.rpartition(":")[2])) as back:
        wait_until(lambda: len(back.spans) > 0, 30)
        wait_until(lambda: len(events(machine, "traces are sent again")) == 1)
        # before the collector ends: what is sent after that is complained of again
        said = [one["event"] for one in events(machine, "") if one["level"] != "info"]
    assert said == ["traces are not sent", "traces are sent again"]


def test_a_collector_that_refuses_is_told_of_with_its_status(start: Start, collector: Collector) -> None:
    collector.status = 401
    machine = start()
    for count in (1, 2, 3):
        predicted(machine)
        wait_until(lambda count=count: collector.tries >= count)
    (line,) = events(machine, "traces are not sent")
    assert "401" in line["reason"]


def test_a_collector_that_never_answers_holds_up_neither_requests_nor_the_end(
    start: Start, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = threading.Event()
    asked = threading.Event()

    def hang(headers: dict[str, str], body: bytes) -> None:
        asked.set()
        answering.wait(120)

    monkeypatch.setattr(collector, "take", hang)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    try:
        machine = start()
        assert asked.wait(30)
        assert [predicted(machine).status for _ in range(20)] == [200] * 20
        machine.end()
        assert machine.processes() == []
        assert events(machine, "ended")[-1]["event"] == "ended"
    finally:
        answering.set()


def test_the_collectors_secret_and_the_services_name_reach_the_collector_and_no_worker(
    start: Start, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret")
    machine = start()
    predicted(machine)
    collector.requests()
    assert collector.headers["authorization"] == "Bearer secret"
    assert collector.resource["service.name"] == "maskx"
    assert not [name for name in machine.worker().environ() if name.startswith("OTEL_")]


def test_the_services_name_is_what_the_environment_says(
    start: Start, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "masks")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    predicted(start())
    collector.requests()
    assert collector.resource["service.name"] == "masks"
    assert collector.resource["deployment.environment.name"] == "test"


@pytest.mark.parametrize(("named", "imported"), [("OTEL_SERVICE_NAME", "False"), (ENDPOINTS[1], "True")])
def test_nothing_of_opentelemetry_is_imported_unless_a_collector_is_named(
    root: Path, named: str, imported: str
) -> None:
    code = f"import sys; from server.light.__main__ import traces_of; traces_of({ {named: 'x'} }, '1')"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('opentelemetry' in sys.modules)"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == imported


def test_a_start_without_the_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(
        ValueError, match="is not installed; run pip install -r requirements/traces.txt, or unset"
    ):
        traces_of(asked, "1")
    assert traces_of({}, "1") is None


def test_another_protocol_than_http_is_refused_at_the_start(
    start: Callable[..., Machine], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(
        AssertionError, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; traces are sent by http/pro"
    ):
        start()
