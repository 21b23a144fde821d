"""When a server counts as ready and as alive, and as idle, with a clock and a TorchServe of the test's own."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import psutil
import pytest

from server.__main__ import main, probes_of
from server.drain import run, unsent_bytes, wait_until_idle
from server.management import Management, Refused, Version, Worker
from server.processes import Running, free_ports
from server.readiness import DEAD_FOR, SILENT_FOR, Health, Readiness, Watch, endpoint

ONE = Version(
    name="1.0",
    workers=(Worker(pid=psutil.Process().pid, status="READY"),),
    pending=0,
    batch_size=4,
    batch_delay=1,
)
OTHER = psutil.Process().ppid()
"""A living process that is not this one."""


@dataclass
class FakeServer:
    """Says what it is told; `describes` counts the calls that went through to a worker."""

    now: float = 0.0
    said: Version | OSError = ONE
    metrics: str = "0"
    hangs: bool = False
    describes: int = 0

    def default(self) -> Version:
        if isinstance(self.said, OSError):
            raise self.said
        return self.said

    def version(self, name: str) -> Version:
        return self.default()

    def answered(self) -> str:
        return self.metrics

    def worker_answers(self, name: str, *, timeout: float) -> None:
        self.describes += 1
        if self.hangs:
            raise TimeoutError("no answer")

    def readiness(self) -> Readiness:
        made = Readiness(cast(Management, self), clock=lambda: self.now)
        made.look()
        return made


def look(made: Readiness, server: FakeServer, seconds: float) -> Health:
    """One look, so many seconds later, and the describe call that it may begin."""
    server.now += seconds
    made.look()
    if made._describing is not None:
        made._describing.join()
    return made.health


def test_a_server_with_nothing_to_do_stays_ready_by_describe_calls() -> None:
    server = FakeServer()
    made = server.readiness()
    for _ in range(10):
        assert look(made, server, 30) == Health(not_ready="")
    assert server.describes >= 5


def test_a_worker_that_hangs_without_being_stopped_is_not_ready_after_a_minute_but_the_server_alive() -> None:
    server = FakeServer(hangs=True)
    made = server.readiness()
    assert look(made, server, 59).not_ready == ""
    assert look(made, server, 2) == Health(not_ready="no worker has answered for 61 s")
    server.hangs = False
    look(made, server, 1)
    assert look(made, server, 1).not_ready == ""


def test_a_saturated_server_is_ready_by_its_answers_alone_and_is_not_asked() -> None:
    server = FakeServer(hangs=True)
    made = server.readiness()
    for count in range(10):
        server.metrics = str(count + 1)
        assert look(made, server, 50).not_ready == ""
    assert server.describes == 0


def test_a_worker_in_place_of_a_dead_one_must_answer_first() -> None:
    server = FakeServer()
    made = server.readiness()
    assert look(made, server, 1).not_ready == ""
    server.said = replace(ONE, workers=(Worker(pid=OTHER, status="READY"),))
    server.metrics = "an answer of the old one"
    assert look(made, server, 1).not_ready == "a new worker has not answered yet"
    assert look(made, server, 1).not_ready == ""


@pytest.mark.parametrize("status", ["UNLOADING", "UNREGISTERED"])
def test_without_a_ready_worker_it_is_not_ready_and_after_ten_minutes_dead(status: str) -> None:
    server = FakeServer()
    made = server.readiness()
    server.said = replace(ONE, workers=(replace(ONE.workers[0], status=status),))
    found = look(made, server, DEAD_FOR)
    assert found == Health(not_ready=f"no worker is ready ({status})")
    assert look(made, server, 1).dead == f"no worker is ready ({status})"
    server.said = replace(ONE, workers=())
    assert look(made, server, 1).not_ready == "no worker is ready (none started)"


def test_another_default_version_keeps_the_server_ready() -> None:
    server = FakeServer()
    made = server.readiness()
    server.said = replace(ONE, name="2.0", workers=(Worker(pid=OTHER, status="READY"),))
    assert look(made, server, 1).not_ready == ""


def test_a_java_that_does_not_answer_is_not_ready_and_after_a_minute_dead() -> None:
    server = FakeServer()
    made = server.readiness()
    server.said = ConnectionRefusedError("refused")
    reason = "TorchServe does not answer: ConnectionRefusedError: refused"
    assert look(made, server, SILENT_FOR) == Health(not_ready=reason)
    assert look(made, server, 1) == Health(not_ready=reason, dead=reason)
    server.said = ONE
    assert look(made, server, 1).dead == ""


def test_a_process_that_is_gone_or_stopped_does_not_live_whatever_torchserve_says() -> None:
    with psutil.Popen(["true"]) as gone:
        gone.wait()
    assert Worker(pid=gone.pid, status="READY").trouble() == "dead"
    with psutil.Popen(["sleep", "600"]) as stopped:
        try:
            stopped.suspend()
            while stopped.status() != psutil.STATUS_STOPPED:
                time.sleep(0.01)
            assert Worker(pid=stopped.pid, status="READY").trouble() == "stopped"
        finally:
            stopped.kill()
    assert Worker(pid=OTHER, status="READY").lives()
    assert Worker(pid=OTHER, status="UNLOADING").trouble() == "UNLOADING"


def test_once_withdrawn_a_server_is_never_ready_again() -> None:
    watch = Watch()
    assert watch.health() == Health(not_ready="the model is loading")
    watch.begin(FakeServer().readiness())
    assert watch.health() == Health(not_ready="")
    watch.withdraw("the server is to end")
    watch.join()
    assert watch.health() == Health(not_ready="the server is to end")


def test_when_torchserve_ends_by_itself_run_says_so_and_ends_with_1(tmp_path: Path) -> None:
    def begin() -> tuple[Running, psutil.Popen]:
        return Running(ports=free_ports(), temporary=str(tmp_path), tokens=False), psutil.Popen(["true"])

    said: list[str] = []
    state = tmp_path / "state"
    assert run(begin, state=state, probes=("127.0.0.1", 0), linger=0.0, drain=0.0, say=said.append) == 1
    assert said[0].startswith("ready; probes on") and said[1:] == [
        f"error: the server ended by itself (logs: {state / 'logs'})"
    ]


def test_an_address_that_cannot_be_listened_on_is_told_with_the_cure() -> None:
    with (
        endpoint(("127.0.0.1", 0), lambda: Health(not_ready="")) as first,
        pytest.raises(ValueError, match="cannot be listened on: .*--probes HOST:PORT"),
    ):
        endpoint(("127.0.0.1", first.server_address[1]), lambda: Health(not_ready=""))


@pytest.mark.parametrize(
    "text", ["8083", "localhost", ":8083", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536"]
)
def test_probes_that_are_no_address_are_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--state", str(tmp_path), "--probes", text]) == 2
    assert "HOST:PORT is expected" in capsys.readouterr().err
    assert probes_of("0.0.0.0:8083") == ("0.0.0.0", 8083)


def test_idle_is_an_empty_queue_and_an_answered_describe_call() -> None:
    server = FakeServer(said=replace(ONE, pending=1))
    assert not wait_until_idle(cast(Management, server), "1.0", seconds=0.2)
    assert server.describes == 0
    server.said = ONE
    assert wait_until_idle(cast(Management, server), "1.0", seconds=60)
    assert server.describes == 1
    server.hangs = True
    assert not wait_until_idle(cast(Management, server), "1.0", seconds=0.2)


def test_a_version_that_is_not_there_is_never_idle() -> None:
    class Gone(FakeServer):
        def version(self, name: str) -> Version:
            raise Refused(404, "no such version")

    assert not wait_until_idle(cast(Management, Gone()), "1.0", seconds=0.2)


def test_of_several_workers_one_that_computes_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.drain.REST", 0.5)
    with psutil.Popen(["sh", "-c", "while :; do :; done"]) as busy, psutil.Popen(["sleep", "600"]) as idle:
        try:
            both = [Worker(pid=process.pid, status="READY") for process in (busy, idle)]
            server = FakeServer(said=replace(ONE, workers=tuple(both)))
            assert not wait_until_idle(cast(Management, server), "1.0", seconds=1.2)
            server.said = replace(ONE, workers=(both[1], both[1]))
            assert wait_until_idle(cast(Management, server), "1.0", seconds=60)
        finally:
            busy.kill()
            idle.kill()


def test_bytes_that_a_client_has_not_taken_yet_are_counted_of_its_port_alone(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    head = (
        "  sl  local_address rem_address   st tx_queue:rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    )
    row = "   0: 0100007F:{port:04X} 0100007F:C350 {state} {sent:08X}:00000007 00:00000000 00000000 0 0 1 1\n"
    table.write_text(
        head
        + row.format(port=8080, state="01", sent=100)
        + row.format(port=8080, state="08", sent=20)
        + row.format(port=8080, state="0A", sent=5)
        + row.format(port=8081, state="01", sent=3)
    )
    assert unsent_bytes({8080, 7070}, (str(table), str(tmp_path / "none"))) == 120
