"""The front in a process of its own: limits, draining, TLS, CORS, what is told of it, and what a start refuses."""

import contextlib
import http.client
import json
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from client.generated import inference_pb2, inference_pb2_grpc
from server.processes import load_running, server_processes
from tests.served.light.conftest import Start, make_fake_machine
from tests.served.machine import Machine
from tests.served.nginx import Reply, wait_until

ONE_AT_A_TIME = "{batchSize: 1, jobQueueSize: 2}"


def predicted(machine: Machine, body: bytes = b"a") -> Reply:
    return machine.ask(body, {"Content-Type": "image/png"})


def by_grpc(machine: Machine, body: bytes) -> bytes:
    """Raises grpc.RpcError."""
    with grpc.insecure_channel(f"127.0.0.1:{machine.ports.grpc}") as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        request = inference_pb2.PredictionsRequest(model_name="maskx", input={"data": body})
        answer: bytes = stub.Predictions(request, timeout=60).prediction
        return answer


def front_of(machine: Machine) -> psutil.Process:
    (found,) = [one for one in server_processes(machine.state) if "server.light" in one.cmdline()]
    return found


def log_of(machine: Machine) -> list[dict[str, object]]:
    return [json.loads(line) for line in (machine.state / "logs" / "light.log").read_text().splitlines()]


def test_a_full_queue_is_told_with_when_to_ask_again_over_both_protocols(start: Start) -> None:
    machine = start(config=ONE_AT_A_TIME)
    with ThreadPoolExecutor(8) as pool:
        sent: list[Future[Reply]] = []
        # One is computed, two wait.
        for count in (1, 2, 3):
            sent.append(pool.submit(predicted, machine, b"slow"))
            wait_until(lambda count=count: machine.management().default().pending >= count)
        refused = predicted(machine)
        with pytest.raises(grpc.RpcError) as raised:
            by_grpc(machine, b"a")
        assert [one.result().status for one in sent] == [200] * 3
    assert (refused.status, refused.error()["type"], refused.headers["retry-after"]) == (503, "Busy", "1")
    error: Any = raised.value
    assert error.code() == grpc.StatusCode.UNAVAILABLE and json.loads(error.details()) == json.loads(
        refused.body
    )
    assert ("retry-after", "1") in [tuple(one) for one in error.trailing_metadata()]


def test_told_to_end_it_answers_who_came_before_refuses_who_comes_after_and_ends_with_0(start: Start) -> None:
    machine = start(config="{batchSize: 1}")
    front = front_of(machine)
    workers = machine.workers()
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(predicted, machine, b"slow") for _ in range(4)]
        called = pool.submit(by_grpc, machine, b"slow")
        wait_until(lambda: machine.management().default().pending >= 5)
        for process in (front, *workers):  # as `stop` does it
            process.terminate()
        wait_until(lambda: machine.ask(path="/ready", method="GET").status == 503)
        late = predicted(machine)
        assert [one.result().status for one in sent] == [200] * 4 and b"slow" in called.result()
    assert (late.status, late.error()["type"], late.headers["retry-after"]) == (503, "Busy", "1")
    psutil.wait_procs([front, *workers], timeout=30)
    assert server_processes(machine.state) == []
    assert log_of(machine)[-1]["event"] == "ended"


def test_in_the_foreground_it_drains_on_sigterm_and_ends_with_0(tmp_path: Path) -> None:
    machine = make_fake_machine(tmp_path / "machine", "{batchSize: 1}")
    process = machine.run("--engine", "light", "--probes", "127.0.0.1:0", "--linger", "0")
    try:
        wait_until(lambda: "ready; probes" in (machine.folder / "run.log").read_text(), 60)
        with ThreadPoolExecutor(4) as pool:
            sent = [pool.submit(predicted, machine, b"slow") for _ in range(3)]
            wait_until(lambda: machine.management().default().pending >= 3)
            process.send_signal(signal.SIGTERM)
            assert [one.result().status for one in sent] == [200] * 3
        assert process.wait(60) == 0
    finally:
        process.kill()
        machine.end()
    assert "every request is answered" in (machine.folder / "run.log").read_text()


def test_when_the_front_is_killed_its_workers_end_too(start: Start) -> None:
    machine = start()
    front_of(machine).kill()
    wait_until(lambda: server_processes(machine.state) == [])


def test_a_dead_worker_costs_nobody_an_answer_and_the_log_tells_of_it(start: Start) -> None:
    machine = start(config="{batchSize: 1}")
    worker = machine.worker()
    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(predicted, machine, b"slow") for _ in range(4)]
        wait_until(lambda: machine.management().default().pending >= 4)
        worker.kill()
        assert [one.result().status for one in sent] == [200] * 4
    assert machine.worker().pid != worker.pid
    assert [
        one["event"]
        for one in log_of(machine)
        if str(one["event"]).startswith("worker ") and one["pid"] == worker.pid
    ][1:] == ["worker died", "worker ended"]


def test_who_hangs_up_is_taken_out_of_the_queue(start: Start) -> None:
    machine = start(config="{batchSize: 1}")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(predicted, machine, b"slow")
        wait_until(lambda: machine.management().default().pending >= 1)
        with socket.create_connection(("127.0.0.1", machine.ports.inference)) as connection:
            connection.sendall(b"POST /predictions/maskx HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\ndie")
            wait_until(lambda: machine.management().default().pending >= 2)
        assert first.result().status == 200
    assert json.loads(predicted(machine).body)["pid"] == machine.worker().pid
    assert [one["status"] for one in log_of(machine) if one["event"] == "request"].count(499) == 1


def test_a_request_that_is_too_large_is_refused_before_it_is_read_and_while_it_is(start: Start) -> None:
    machine = start()
    head = b"POST /predictions/maskx HTTP/1.1\r\nHost: x\r\nContent-Length: 40000000\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", machine.ports.inference)) as connection:
        connection.sendall(head)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        error = json.loads(answer.read())["error"]
    assert (answer.status, error["type"], error["code"]) == (413, "RequestTooLarge", 413)
    assert "33554432" in error["message"]
    connection2 = http.client.HTTPConnection("127.0.0.1", machine.ports.inference, timeout=60)
    with contextlib.closing(connection2):
        connection2.putrequest("POST", "/predictions/maskx")
        connection2.putheader("Transfer-Encoding", "chunked")
        connection2.endheaders()
        with contextlib.suppress(ConnectionError):
            for _ in range(36):
                connection2.send(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        assert connection2.getresponse().status == 413
    with pytest.raises(grpc.RpcError) as raised:
        by_grpc(machine, bytes(34 << 20))
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = make_fake_machine(tmp_path_factory.mktemp("shared") / "machine")
    try:
        done = machine.start("--engine", "light")
        assert done.returncode == 0, done.stderr
        yield machine
    finally:
        machine.end()


@pytest.mark.parametrize(
    ("path", "method", "status", "kind"),
    [
        ("/other", "GET", 404, "NotFound"),
        ("/predictions/other", "POST", 404, "NotFound"),
        ("/predictions/maskx/9", "POST", 404, "NotFound"),
        ("/predictions/maskx", "OPTIONS", 405, "MethodNotAllowed"),
        ("/ready", "POST", 405, "MethodNotAllowed"),
    ],
)
def test_what_is_not_there_is_refused_in_the_form_of_every_other_error(
    shared: Machine, path: str, method: str, status: int, kind: str
) -> None:
    reply = shared.ask(b"a", {}, path, method=method)
    error = reply.error()
    assert (reply.status, error["code"], error["type"]) == (status, status, kind)


def test_a_request_has_an_id_of_its_own_in_answer_and_log_whatever_the_client_calls_it(start: Start) -> None:
    machine = start()
    reply = machine.ask(b"a", {"X-Request-Id": "mine"})
    (line,) = [one for one in log_of(machine) if one.get("id") == reply.headers["x-request-id"]]
    assert reply.headers["x-request-id"] != "mine"
    assert (line["method"], line["path"], line["status"]) == ("POST", "/predictions/maskx", 200)
    assert line["bytes"] == len(reply.body)


def test_it_is_watched_at_the_usual_addresses_and_counts_by_the_declared_names(start: Start) -> None:
    machine = start()
    for path in ("/ping", "/ready", "/live", "/v2/health/live", "/v2/health/ready", "/v2/models/maskx/ready"):
        assert machine.ask(path=path, method="GET").status == 200, path
    assert json.loads(machine.ask(path="/v1/models/maskx", method="GET").body) == {
        "name": "maskx",
        "ready": True,
    }
    text = machine.ask(path="/metrics", method="GET", port=machine.ports.metrics).body.decode()
    assert "maskx_batch_size_count{" in text and 'maskx_workers_ready{model_version="1.0"} 1.0' in text
    machine.worker().suspend()
    try:
        worker = machine.worker()
        worker.kill()
        wait_until(lambda: machine.ask(path="/ready", method="GET").status == 503)
    finally:
        wait_until(lambda: machine.ask(path="/ready", method="GET").status == 200)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 signed by itself, and its key."""
    made, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-keyout", str(key), "-out", str(made), "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


def test_with_certificate_and_key_both_protocols_are_encrypted(start: Start, tmp_path: Path) -> None:
    made, key = certificate(tmp_path)
    machine = start("--tls-cert", str(made), "--tls-key", str(key))
    context = ssl.create_default_context(cafile=str(made))
    connection = http.client.HTTPSConnection(
        "127.0.0.1", machine.ports.inference, context=context, timeout=60
    )
    connection.request("POST", "/predictions/maskx", body=b"a")
    answer = connection.getresponse().read()
    connection.close()
    credentials = grpc.ssl_channel_credentials(made.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{machine.ports.grpc}", credentials) as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        request = inference_pb2.PredictionsRequest(model_name="maskx", input={"data": b"a"})
        assert stub.Predictions(request, timeout=60).prediction == answer
    with pytest.raises((OSError, http.client.HTTPException)):
        predicted(machine)
    assert machine.command("ready").stdout == "ready\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "light", "--tokens"], "--tokens is TorchServe's own"),
        (["--engine", "light", "--tls-cert", "a.pem"], "--tls-cert and --tls-key go together"),
        (
            ["--engine", "light", "--tls-cert", "a.pem", "--tls-key", "b.pem"],
            "a.pem; --tls-cert and --tls-key name",
        ),
        (["--host", "0.0.0.0"], "are for --engine light"),
    ],
)
def test_what_an_engine_does_not_have_is_refused_before_anything_is_started(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    machine = make_fake_machine(tmp_path / "machine")
    done = machine.start(*arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert load_running(machine.state) is None


def test_an_archive_that_cannot_be_loaded_is_told_in_one_line_and_nothing_is_left_running(
    tmp_path: Path,
) -> None:
    machine = make_fake_machine(tmp_path / "machine", "broken: true")
    done = machine.start("--engine", "light")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "the model cannot be served: ValueError: this archive is broken" in done.stderr
    assert server_processes(machine.state) == []
