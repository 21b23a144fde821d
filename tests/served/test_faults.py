"""A worker that is killed or stopped under load, as clients with their retries see it."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.load.faults import Traffic, strike, traffic
from benchmarks.load.server import Served
from client import Client, Retries, ServerFailed, ServerUnreachable
from server.processes import ENGINES, LIGHT, server_processes
from tests.served.machine import serving
from tests.served.nginx import wait_until
from tests.served.standin import png, scene

IMAGE = png(scene(width=61, height=47, red=(3, 2, 20, 11), green=(30, 4, 13, 21)))


@pytest.fixture(scope="module")
def served(
    standin_archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, engine: str
) -> Iterator[Served]:
    """A stopped worker is ended after 3 seconds, not after 2 minutes."""
    archive = standin_archive("faults", responseTimeout=3, batchSize=4, maxBatchDelay=1)
    with serving(tmp_path_factory.mktemp("faults"), archive, "--engine", engine) as machine:
        served = Served(archive, machine.state)
        served.ports = machine.ports
        yield served


@pytest.mark.engines(*ENGINES)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_no_request_is_lost_when_the_worker_dies_under_load(served: Served, how: signal.Signals) -> None:
    """TorchServe answers 500 to the batch that the worker had; a stopped one is ended after responseTimeout."""
    before = served.worker()
    with (
        Client(served.url, token="", timeout=60, deadline=120) as rest,
        Client(f"grpc://127.0.0.1:{served.ports.grpc}", token="", timeout=60, deadline=120) as grpc,
    ):
        expected = rest.predict(IMAGE)
        assert len(expected.detections) == 2
        answered: list[str] = []

        def ask_both() -> None:
            for name, client in (("REST", rest), ("gRPC", grpc)):
                assert client.predict(IMAGE) == expected
                answered.append(name)

        with traffic(ask_both) as made:
            recovery = strike(served, made, how)["recovery"]
    assert made.lost == {} and recovery > 0  # which a request had that was sent after the fault
    assert set(answered) == {"REST", "gRPC"}
    after = served.worker()
    assert before is not None and after is not None and before.pid != after.pid


def test_without_retries_the_same_fault_is_seen(served: Served) -> None:
    """Else the test above would not have met the fault at all."""
    with (
        Client(served.url, token="", timeout=60, retries=Retries(attempts=1)) as client,
        traffic(lambda: _predicted(client)) as made,
    ):
        strike(served, made, signal.SIGKILL)
    assert 0 < sum(made.lost.values()) <= 8
    assert all(what.startswith((ServerFailed.__name__, ServerUnreachable.__name__)) for what in made.lost)


@pytest.mark.engines(LIGHT)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_light_server_asks_again_itself_so_clients_need_no_retries(
    served: Served, how: signal.Signals
) -> None:
    with (
        Client(served.url, token="", timeout=60, retries=Retries(attempts=1)) as client,
        traffic(lambda: _predicted(client)) as made,
    ):
        recovery = strike(served, made, how)["recovery"]
    assert made.lost == {} and recovery > 0


def test_when_java_dies_torchserves_starter_ends(served: Served) -> None:
    """By which `run` notices it."""
    (starter,) = [one for one in server_processes(served.state) if "ts.model_server" in one.cmdline()]
    served.front().kill()
    wait_until(lambda: starter not in server_processes(served.state))


def test_traffic_counts_what_is_raised_and_finds_the_first_answer_after_a_moment() -> None:
    made = Traffic([(0.0, 1.0, ""), (1.0, 4.0, "Late: no"), (1.5, 6.0, ""), (2.0, 5.0, ""), (0.5, 3.0, "")])
    assert made.lost == {"Late: no": 1}
    assert made.answered_after(1.0) == 5.0 and made.answered_after(2.0) is None
    assert made.slowest() == 4.5


def _predicted(client: Client) -> None:
    client.predict(IMAGE)
