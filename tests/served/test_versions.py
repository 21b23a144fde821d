"""Versions beside each other on the real server: registered, made the default and removed, under load."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from urllib.parse import quote

import pytest

from server.management import ask
from server.processes import ENGINES
from tests.served.machine import Machine, serving
from tests.served.nginx import wait_until
from tests.served.standin import png, scene

pytestmark = pytest.mark.engines(*ENGINES)

IMAGE = png(scene(red=(3, 2, 20, 11)))
SLOW = png(scene(width=1600, height=1200, red=(3, 2, 500, 400)))


@pytest.fixture(scope="module")
def machine(
    standin_archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, engine: str
) -> Iterator[Machine]:
    """Serves version 1.0, and lets others be registered."""
    arguments = ("--model-api", "--batch-size", "3", "--engine", engine)
    with serving(tmp_path_factory.mktemp("versions"), standin_archive("first"), *arguments) as machine:
        yield machine


def predict(machine: Machine, image: bytes = IMAGE, version: str = "") -> tuple[int, str]:
    """Status, and the version that answered."""
    path = f"/predictions/maskx{'/' if version else ''}{version}"
    status, body = ask(machine.ports.inference, "POST", path, timeout=120, body=image)
    return status, json.loads(body)["model"]["version"] if status == 200 else ""


def names(machine: Machine) -> list[str]:
    return [one.name for one in machine.management().versions()]


def refused(machine: Machine, *arguments: str) -> str:
    """The one line of an error; the server must go on with version 1.0 as before."""
    done = machine.command(*arguments)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done
    assert names(machine) == ["1.0"] and predict(machine) == (200, "1.0")
    assert {path.name for path in (machine.state / "model-store").iterdir()} == {"maskx.mar"}
    return done.stderr


def test_a_server_started_without_the_model_api_lets_nobody_register(
    server: Machine, standin_archive: Callable[..., Path]
) -> None:
    archive = standin_archive("not wanted", version="2.0")
    for arguments in (["register", "--archive", str(archive)], ["default", "1.0"], ["unregister", "1.0"]):
        done = server.command(*arguments)
        assert done.returncode == 2 and "was started without --model-api" in done.stderr
    assert server.command("versions").stdout.split("\n")[1].split()[:3] == ["1.0", "yes", "ready"]


def test_what_cannot_be_registered_is_told_in_one_line_and_changes_nothing(
    machine: Machine, standin_archive: Callable[..., Path], tmp_path: Path
) -> None:
    assert "versions can be registered and removed: python -m server --help" in machine.started
    changed = standin_archive("changed", version="2.0")
    changed.write_bytes(changed.read_bytes() + b"more")
    assert "it was changed or not copied whole" in refused(machine, "register", "--archive", str(changed))
    cut = tmp_path / "cut.mar"
    cut.write_bytes(changed.read_bytes()[:5000])
    assert "cannot be read as an archive" in refused(machine, "register", "--archive", str(cut))
    again = standin_archive("again", version="1.0")
    assert "version 1.0 of" in refused(machine, "register", "--archive", str(again))
    assert "there is no nothing.mar" in refused(machine, "register", "--archive", "nothing.mar")
    assert "version '9' is not registered; registered are 1.0" in refused(machine, "default", "9")
    assert "version '9' is not registered" in refused(machine, "unregister", "9")
    assert "is the default, which cannot be removed" in refused(machine, "unregister", "1.0")


def test_a_version_that_cannot_be_loaded_is_told_with_its_reason_and_is_gone(
    machine: Machine, standin_archive: Callable[..., Path]
) -> None:
    broken = standin_archive("broken", version="3.0", unheard=1)
    message = refused(machine, "register", "--archive", str(broken))
    assert "version 3.0 cannot be served: ValueError: model-config.yaml: unknown key 'unheard'" in message
    assert len(machine.workers()) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/maskx.mar",
        "file:///etc/passwd",
        "file://{store}/../../../build/maskx.mar",
        "../../maskx.mar",
    ],
)
def test_torchserve_itself_registers_nothing_from_outside_its_model_store(machine: Machine, url: str) -> None:
    url = url.replace("{store}", str(machine.state / "model-store"))
    path = f"/models?url={quote(url, safe='')}&model_name=other&initial_workers=1&synchronous=true"
    status, body = ask(machine.ports.management, "POST", path, timeout=60, body=b"")
    assert status == 404, body
    assert json.loads(ask(machine.ports.management, "GET", "/models", timeout=60)[1])["models"] == [
        {"modelName": "maskx", "modelUrl": "maskx.mar"}
    ]


def test_hot_swap_under_eight_clients_fails_no_request(
    machine: Machine, standin_archive: Callable[..., Path]
) -> None:
    archive, over, answers = standin_archive("second", version="2.0"), Event(), []

    def client() -> None:
        while not over.is_set():
            answers.append(predict(machine, SLOW))

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client) for _ in range(8)]
        try:
            registered = machine.command("register", "--archive", str(archive))
            assert (registered.returncode, names(machine)) == (0, ["1.0", "2.0"]), registered.stderr
            assert predict(machine)[1] == "1.0" and predict(machine, version="2.0") == (200, "2.0")
            assert [one.batch_size for one in machine.management().versions()] == [3, 3]
            assert machine.command("default", "2.0").stdout == "version 2.0 is the default\n"
            removed = machine.command("unregister", "1.0")
            assert (removed.returncode, removed.stdout) == (0, "version 1.0 is removed\n"), removed.stderr
            seen = len(answers)
            wait_until(lambda: len(answers) >= seen + 16, 120)
        finally:
            over.set()
        for one in clients:
            one.result()
    assert {status for status, _ in answers} == {200}
    assert {version for _, version in answers} == {"1.0", "2.0"}
    assert answers[-1] == (200, "2.0") and predict(machine, version="1.0")[0] == 404
    assert len(machine.workers()) == 1
    rows = machine.command("versions").stdout.splitlines()
    assert [row.split()[:3] for row in rows[1:]] == [["2.0", "yes", "ready"]]


def test_a_version_is_removed_when_its_last_request_is_answered_and_not_before(
    machine: Machine, standin_archive: Callable[..., Path]
) -> None:
    """TorchServe by itself would leave those in its queue without an answer for ever."""
    archive = standin_archive("fourth", version="4.0")
    assert machine.command("register", "--archive", str(archive)).returncode == 0
    with ThreadPoolExecutor(12) as pool:
        sent = [pool.submit(predict, machine, SLOW, "4.0") for _ in range(12)]
        wait_until(lambda: machine.management().version("4.0").pending >= 4)
        removed = machine.command("unregister", "4.0")
    assert removed.returncode == 0 and {one.result() for one in sent} == {(200, "4.0")}
    assert "4.0" not in names(machine)
    assert not (machine.state / "model-store" / "maskx-4.0.mar").exists()


def test_a_version_that_still_has_requests_after_the_drain_stays(
    machine: Machine, standin_archive: Callable[..., Path]
) -> None:
    archive = standin_archive("fifth", version="5.0")
    assert machine.command("register", "--archive", str(archive)).returncode == 0
    (pid,) = [worker.pid for worker in machine.management().version("5.0").workers]
    (worker,) = [process for process in machine.workers() if process.pid == pid]
    worker.suspend()
    try:
        done = machine.command("unregister", "5.0", "--drain", "1")
        assert done.returncode == 2 and "still has requests after 1 s, or its worker does not" in done.stderr
        assert "5.0" in names(machine)
    finally:
        worker.resume()
    assert machine.command("unregister", "5.0").returncode == 0
