"""`run`: the endpoint while the real server loads, is killed, stopped and saturated, and the end that loses nothing."""

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.management import ask
from server.processes import free_ports
from tests.served.machine import SECRET, UNSUSPECTED, Machine, make_machine
from tests.served.nginx import wait_until
from tests.served.standin import png, scene

SLOW = png(scene(width=2400, height=1800, red=(3, 2, 500, 400)))
"""Takes the worker a good deal longer than any probe."""
LONGEST = 120.0
"""Seconds after which a test gives up waiting."""


@dataclass
class Served:
    """A machine whose server runs in the foreground, and where its probes are answered."""

    machine: Machine
    process: subprocess.Popen[bytes]
    probes: int
    while_loading: list[tuple[int, dict[str, Any], int]] = field(default_factory=list)

    def probe(self, path: str = "/ready") -> tuple[int, dict[str, Any]]:
        status, body = ask(self.probes, "GET", path, timeout=10)
        return status, json.loads(body)

    def until(self, status: int) -> dict[str, Any]:
        """Waits until /ready answers with this status; all the while the server must be alive."""
        deadline = time.monotonic() + LONGEST
        while (found := self.probe())[0] != status:
            assert self.probe("/live")[0] == 200
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found[1]

    def predict(self, image: bytes) -> int:
        return ask(self.machine.ports.inference, "POST", "/predictions/maskx", timeout=LONGEST, body=image)[0]

    def said(self) -> str:
        return (self.machine.folder / "run.log").read_text()


def run(machine: Machine, *arguments: str) -> Served:
    probes = free_ports().metrics
    return Served(machine, machine.run("--probes", f"127.0.0.1:{probes}", *arguments), probes)


def end(served: Served) -> None:
    if served.process.poll() is None:
        served.process.kill()
    served.process.wait()
    served.machine.end()


@pytest.fixture(scope="module")
def served(
    standin_archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Watched from its first second until it was ready."""
    machine = make_machine(tmp_path_factory.mktemp("run"), standin_archive("run"))
    served = run(machine, "--linger", "3")
    try:
        deadline = time.monotonic() + LONGEST
        while served.process.poll() is None and time.monotonic() < deadline:
            try:
                ready, live = served.probe(), served.probe("/live")[0]
            except OSError:  # not listening yet
                continue
            served.while_loading.append((*ready, live))
            if ready[0] == 200:
                break
            time.sleep(0.05)
        assert served.while_loading and served.while_loading[-1][0] == 200, served.said()
        yield served
    finally:
        end(served)


def test_while_the_model_loads_the_server_is_alive_and_not_ready(served: Served) -> None:
    *before, (_, last, _) = served.while_loading
    assert before and last == {"ready": True}
    assert {(status, content["reason"], live) for status, content, live in before} == {
        (503, "the model is loading", 200)
    }
    assert served.predict(png(scene())) == 200


def test_the_worker_gets_nothing_of_the_environment_but_what_it_needs(served: Served) -> None:
    for process in served.machine.processes():
        environment = process.environ()
        assert UNSUSPECTED not in environment
        assert environment["MASKX_TEST_PLAIN"] == "may be seen"
    assert SECRET not in served.machine.worker().environ()


def test_other_paths_of_the_endpoint_are_unknown_and_head_has_no_body(served: Served) -> None:
    assert served.probe("/metrics") == (404, {"reason": "known are /ready and /live"})
    assert served.probe("/ready?verbose")[0] == 200
    connection = http.client.HTTPConnection("127.0.0.1", served.probes, timeout=10)
    connection.request("HEAD", "/live")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    connection.close()


def test_batches_are_what_suits_the_machine_and_the_metrics_are_those_declared(served: Served) -> None:
    version = served.machine.management().default()
    batching = served.machine.running.batching
    assert (version.batch_size, version.batch_delay) == (batching.batch_size, batching.batch_delay)
    assert len(version.workers) == batching.workers
    assert version.batch_size > 1  # TorchServe's own default
    metrics = ask(served.machine.ports.metrics, "GET", "/metrics", timeout=10)[1].decode()
    assert "# TYPE maskx_forward_seconds histogram" in metrics and "ts_inference_requests_total{" in metrics


def test_answers_move_the_metrics_over_both_protocols(served: Served) -> None:
    server = served.machine.management()

    def moves(act: Callable[[], Any]) -> None:
        before = server.answered()
        act()
        wait_until(lambda: server.answered() != before, LONGEST)

    moves(lambda: served.predict(png(scene())))
    moves(lambda: served.predict(b"no image"))
    moves(lambda: served.machine.grpc().predict(png(scene())))


def test_a_stopped_worker_is_not_ready_though_torchserve_says_so_and_is_ready_when_it_goes_on(
    served: Served,
) -> None:
    worker = served.machine.worker()
    worker.suspend()
    try:
        assert served.until(503)["reason"] == "no worker is ready (stopped)"
        status, body = ask(served.machine.ports.inference, "GET", "/ping", timeout=10)
        assert status == 200 and json.loads(body) == {"status": "Healthy"}
        assert served.machine.management().default().workers[0].status == "READY"
        assert served.machine.command("ready").returncode == 1
        before, more = (
            served.machine.management().answered(),
            served.machine.management().default().batch_size + 1,
        )
        with ThreadPoolExecutor(more) as pool:
            wait = [pool.submit(served.predict, png(scene())) for _ in range(more)]
            # one that found no place in the batch
            wait_until(lambda: served.machine.management().default().pending > 0, LONGEST)
            assert (
                served.machine.management().answered() == before
            )  # a request that came is no sign of an answer
            worker.resume()
            assert [one.result() for one in wait] == [200] * more
    finally:
        worker.resume()
    assert served.until(200) == {"ready": True}


def test_a_killed_worker_is_not_ready_until_the_next_one_answers(served: Served) -> None:
    worker = served.machine.worker()
    os.kill(worker.pid, signal.SIGKILL)
    assert "no worker is ready" in served.until(503)["reason"]
    assert served.until(200) == {"ready": True}
    assert served.machine.worker().pid != worker.pid
    assert served.predict(png(scene())) == 200


def test_a_saturated_server_stays_ready_and_its_describe_call_waits_behind_the_requests(
    served: Served,
) -> None:
    two_batches = 2 * served.machine.management().default().batch_size
    with ThreadPoolExecutor(24) as pool:
        sent = [pool.submit(served.predict, SLOW) for _ in range(32)]
        looks, while_saturated = [], []
        while not all(one.done() for one in sent):
            looks.append(served.probe()[0])
            if served.machine.management().default().pending > two_batches:
                while_saturated.append(served.probe()[0])
            time.sleep(0.1)
    assert {one.result() for one in sent} == {200}
    assert while_saturated and set(looks + while_saturated) == {200}


def test_told_to_end_under_load_it_is_not_ready_first_answers_all_and_ends_with_0(served: Served) -> None:
    """Twelve clients each send as long as the endpoint says ready, as behind a balancer; none is left unanswered."""
    ports, processes = served.machine.ports, served.machine.processes()
    assert served.probe()[0] == 200

    begun = set()

    def client(index: int) -> list[int]:
        answers = []
        while served.probe()[0] == 200:
            begun.add(index)
            answers.append(ask(ports.inference, "POST", "/predictions/maskx", timeout=LONGEST, body=SLOW)[0])
        return answers

    with ThreadPoolExecutor(12) as pool:
        clients = [pool.submit(client, index) for index in range(12)]
        wait_until(lambda: len(begun) == 12 and served.machine.management().default().pending >= 6, LONGEST)
        served.process.send_signal(signal.SIGTERM)
        assert served.until(503)["reason"] == "the server is to end"
        late = ask(ports.inference, "POST", "/predictions/maskx", timeout=LONGEST, body=SLOW)[0]
        answers = [status for one in clients for status in one.result()]
    assert served.process.wait(timeout=LONGEST) == 0, served.said()
    assert set(answers) == {200} and len(answers) >= 12 and late == 200
    assert served.said().endswith("every request is answered\nstopped\n")
    assert served.machine.processes() == []
    assert {p.status() for p in processes if p.is_running()} <= {psutil.STATUS_ZOMBIE}
    with pytest.raises(OSError, match="refused"):
        served.probe()
    assert {path.name for path in served.machine.state.iterdir()} == {".maskx-server", "logs"}


def test_told_to_end_while_the_model_loads_it_ends_with_0_and_leaves_nothing(
    standin_archive: Callable[..., Path], tmp_path: Path
) -> None:
    served = run(make_machine(tmp_path, standin_archive("early")))
    try:
        wait_until(served.machine.processes, LONGEST)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=LONGEST) == 0
        assert "told to end before the model was ready\nstopped\n" in served.said()
        assert served.machine.processes() == []
    finally:
        end(served)
