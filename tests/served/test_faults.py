"""A worker that is killed or stopped under load, as clients with their retries see it."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.load.faults import Traffic, strike, traffic
from benchmarks.load.server import Served
from client import Client, Retries, ServerFailed, ServerUnreachable
from tests.served.machine import make_machine
from tests.served.standin import png, scene

IMAGE = png(scene(width=61, height=47, red=(3, 2, 20, 11), green=(30, 4, 13, 21)))


@pytest.fixture(scope="module")
def served(
    standin_archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A stopped worker is ended after 3 seconds, not after 2 minutes."""
    archive = standin_archive("faults", responseTimeout=3, batchSize=4, maxBatchDelay=1)
    machine = make_machine(tmp_path_factory.mktemp("faults"), archive)
    try:
        started = machine.start()
        assert started.returncode == 0, started.stderr
        served = Served(archive, machine.state)
        served.ports = machine.ports
        yield served
    finally:
        machine.end()


@pytest.mark.parametrize(("how", "protocol"), [(signal.SIGKILL, "REST"), (signal.SIGSTOP, "gRPC")])
def test_no_request_is_lost_when_the_worker_dies_under_load(
    served: Served, how: signal.Signals, protocol: str
) -> None:
    url = served.url if protocol == "REST" else f"grpc://127.0.0.1:{served.ports.grpc}"
    before = served.worker()
    with Client(url, token="", timeout=60, deadline=120) as client:
        expected = client.predict(IMAGE)
        assert len(expected.detections) == 2

        def ask() -> None:
            assert client.predict(IMAGE) == expected

        with traffic(ask) as made:
            recovery = strike(served, made, how)["recovery"]
    assert made.lost == {} and recovery > 0  # which a request had that was sent after the fault
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


def test_traffic_counts_what_is_raised_and_finds_the_first_answer_after_a_moment() -> None:
    made = Traffic([(0.0, 1.0, ""), (1.0, 4.0, "Late: no"), (1.5, 6.0, ""), (2.0, 5.0, ""), (0.5, 3.0, "")])
    assert made.lost == {"Late: no": 1}
    assert made.answered_after(1.0) == 5.0 and made.answered_after(2.0) is None
    assert made.slowest() == 4.5


def _predicted(client: Client) -> None:
    client.predict(IMAGE)
