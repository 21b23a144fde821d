"""Starting, reloading and ending the proxy: what is wrong is said at once, and what runs loses nothing."""

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest

from export.archive import ROOT
from tests.served.nginx import (
    SECRET,
    SIGNS_OF_LIFE,
    Proxy,
    make_proxy,
    proxy,
    takes_connections,
    wait_until,
)
from tests.served.upstream import Answer, Seen, Upstream, upstream

pytestmark = pytest.mark.usefixtures("fresh")
NEW_SECRET = "n" * 31 + "+"


@pytest.fixture
def idle() -> Iterator[Proxy]:
    """One that is not started."""
    made = make_proxy()
    yield made
    made.end()


class Gate:
    """An answer that is held back until the gate is opened."""

    def __init__(self) -> None:
        self.open = Event()

    def __call__(self, seen: Seen) -> Answer:
        self.open.wait(30)
        return Answer(body=b"held back: " + seen.body)


def test_a_reload_to_another_server_under_load_loses_no_request_and_frees_the_old_one() -> None:
    """When nginx's old workers have ended, the old server can be stopped."""
    stop = Event()

    def ask_again_and_again(client: int) -> list[tuple[int, bytes]]:
        answers = []
        while not stop.is_set():
            reply = made.ask(body=b"%d" % client)
            answers.append((reply.status, reply.body))
        return answers

    with ExitStack() as stack:
        of_old = stack.enter_context(ExitStack())
        old, new = of_old.enter_context(upstream()), stack.enter_context(upstream())
        made = stack.enter_context(proxy(INFERENCE=old.address))
        pool = stack.enter_context(ThreadPoolExecutor(8))
        old.answer = lambda seen: Answer(body=b"old " + seen.body)
        new.answer = lambda seen: Answer(body=b"new " + seen.body)
        clients = [pool.submit(ask_again_and_again, client) for client in range(8)]
        try:
            wait_until(lambda: len(old.seen) > 100)
            workers = made.workers()
            made.settings["INFERENCE"] = new.address
            reloaded = made.entrypoint("reload")
            assert reloaded.returncode == 0, reloaded.stderr
            wait_until(lambda: made.workers() and not made.workers() & workers)
            of_old.close()
            asked_of_old = len(old.seen)
            before = len(new.seen)
            wait_until(lambda: len(new.seen) > before + 100)
        finally:
            stop.set()
        answers = [answer for client in clients for answer in client.result()]
        failed = [answer for answer in answers if answer[0] != 200]
        assert failed == [] and len(old.seen) == asked_of_old
        assert {body.split()[0] for _, body in answers} == {b"old", b"new"}
        assert len(answers) == len(old.seen) + len(new.seen)  # none was computed twice


def test_requests_in_flight_are_answered_by_the_server_they_went_to_after_a_reload(behind: Upstream) -> None:
    behind.answer = gate = Gate()
    with upstream() as new, proxy(INFERENCE=behind.address) as made, ThreadPoolExecutor(4) as pool:
        held = [pool.submit(made.ask, body=b"%d" % i) for i in range(4)]
        wait_until(lambda: len(behind.seen) == 4)
        made.settings["INFERENCE"] = new.address
        old_workers = made.workers()
        made.entrypoint("reload")
        wait_until(lambda: made.leaving() == old_workers and made.workers() - old_workers)
        assert made.ask(body=b"another").status == 200 and [seen.body for seen in new.seen] == [b"another"]
        gate.open.set()
        assert sorted(reply.result().body for reply in held) == [b"held back: %d" % i for i in range(4)]
        wait_until(lambda: not made.workers() & old_workers)


def test_quit_answers_what_it_has_takes_nothing_new_and_ends(behind: Upstream) -> None:
    behind.answer = gate = Gate()
    with proxy(INFERENCE=behind.address) as made, ThreadPoolExecutor(1) as pool:
        held = pool.submit(made.ask, body=b"in flight")
        wait_until(lambda: len(behind.seen) == 1)
        assert made.entrypoint("quit").returncode == 0
        wait_until(lambda: not takes_connections(made.port))
        gate.open.set()
        assert held.result().body == b"held back: in flight"
        assert made.process is not None and made.process.wait(SIGNS_OF_LIFE) == 0


def test_a_kept_connection_is_closed_by_a_reload_after_its_answer_and_says_so(behind: Upstream) -> None:
    behind.answer = gate = Gate()
    with proxy(INFERENCE=behind.address) as made, ThreadPoolExecutor(1) as pool:
        connection = made.connect()
        held = pool.submit(made.ask, over=connection)
        wait_until(lambda: len(behind.seen) == 1)
        made.entrypoint("reload")
        wait_until(lambda: len(made.workers()) > 2)
        gate.open.set()
        assert held.result().status == 200
        connection.close()


def test_secrets_are_rotated_by_a_reload_with_both_valid_in_between(behind: Upstream) -> None:
    with proxy(INFERENCE=behind.address) as made:
        secrets = made.folder / "secrets"

        def statuses() -> tuple[int, int]:
            return made.ask().status, made.ask(secret=NEW_SECRET).status

        assert statuses() == (200, 401)
        secrets.write_text(f"{SECRET}\n{NEW_SECRET}\n")
        assert made.entrypoint("reload").returncode == 0
        wait_until(lambda: statuses() == (200, 200))
        secrets.write_text(f"{NEW_SECRET}\n")
        assert made.entrypoint("reload").returncode == 0
        wait_until(lambda: statuses() == (401, 200))


def test_a_reload_with_something_wrong_changes_nothing(behind: Upstream) -> None:
    with proxy(INFERENCE=behind.address) as made:
        for setting, value in (("INFERENCE", "no-such-host.invalid:1"), ("RATE", "many")):
            before = made.settings.get(setting, "")
            made.settings[setting] = value
            refused = made.entrypoint("reload")
            assert refused.returncode == 2
            assert refused.stderr.startswith("error: ") and value in refused.stderr
            made.settings[setting] = before
        (made.folder / "secrets").write_text("short\n")
        assert made.entrypoint("reload").returncode == 2
        assert made.ask().status == 200
        made.process.send_signal(1)  # type: ignore[union-attr]  # nginx reads the files again: they are the old ones
        wait_until(lambda: made.ask().status == 200)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "holds no secret"),
        ("# only a comment\n\n", "holds no secret"),
        ("a" * 31 + "\n", "line 1 of .* has a secret of 31 characters; 32 to 512"),
        ("\n" + "a" * 513, "line 2 of .* has a secret of 513 characters"),
        (f'{"a" * 32}"; }}', "line 1 of .* (other characters|more than two words)"),
        (f"{'a' * 32}\\E.*", "other characters"),
        (f"na;me {'a' * 32}", "a name with other characters"),
        (f"two words {'a' * 32}", "more than two words"),
        (f"{'a' * 32}\n{'a' * 32}\n", "line 2 of .* stands above already"),
        (f"{'é' * 32}\n", "other characters"),
    ],
)
def test_a_file_of_secrets_that_is_wrong_is_refused_without_showing_it(
    idle: Proxy, content: str, reason: str
) -> None:
    (idle.folder / "secrets").write_text(content)
    checked = idle.entrypoint("check")
    assert checked.returncode == 2 and checked.stderr.count("\n") == 1
    assert re.search(reason, checked.stderr), checked.stderr
    assert "aaaa" not in checked.stderr


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("LISTEN", "8443", "MASKX_LISTEN is '8443'; expected ADDRESS:PORT for REST, such as 127.0.0.1:8000"),
        ("INFERENCE", "a:1; deny all", "MASKX_INFERENCE is 'a:1; deny all'; expected HOST:PORT"),
        ("MAX_BODY", "32m", "MASKX_MAX_BODY is '32m'; expected bytes"),
        ("BODY_TIMEOUT", "10", "MASKX_BODY_TIMEOUT is '10'; expected seconds, such as 10s"),
        ("RATE", "0", "MASKX_RATE is '0'"),
        ("RATE", "1\n2", "MASKX_RATE is '1"),
        ("ALLOW", "10.0.0.0/8;", "MASKX_ALLOW is '10.0.0.0/8;'"),
        ("TLS", "yes", "MASKX_TLS is 'yes'; expected on or off"),
        ("SECRETS", "/nowhere", "the secrets /nowhere cannot be read"),
        ("NGINX", "/nowhere/nginx", "there is no /nowhere/nginx; install nginx"),
        ("RUN", "/proc/none", "/proc/none cannot be written"),
        ("RUN", "/a b", "MASKX_RUN is '/a b'"),
        ("ALLOW", "300.1.1.1", "nginx refuses these settings"),
    ],
)
def test_a_setting_that_is_wrong_is_named_with_what_is_allowed(
    idle: Proxy, setting: str, value: str, said: str
) -> None:
    idle.settings[setting] = value
    checked = idle.entrypoint("check")
    assert checked.returncode == 2 and checked.stderr.startswith("error: ") and said in checked.stderr


def test_without_a_certificate_it_says_where_one_is_expected(idle: Proxy) -> None:
    idle.settings |= {"TLS": "on", "KEY": "/nowhere/key.pem"}
    assert "the key /nowhere/key.pem cannot be read" in idle.entrypoint("check").stderr


def test_commands_for_a_proxy_that_does_not_run_say_so(idle: Proxy) -> None:
    for command in ("reload", "quit"):
        assert idle.entrypoint(command).stderr == f"error: no proxy runs from {idle.folder / 'run'}\n"
    assert "'start' is not one of run, check, reload, quit" in idle.entrypoint("start").stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try to run it as root")
def test_it_refuses_to_run_as_root(idle: Proxy) -> None:
    refused = subprocess.run(
        ["sh", str(idle.folder / "nginx" / "entrypoint.sh"), "run"],
        env=idle.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2 and "does not run as root" in refused.stderr


def test_it_writes_in_its_run_folder_alone_and_others_cannot_read_it(behind: Upstream) -> None:
    """Bodies and answers above nginx's buffers go to files; every file that nginx has open to write lies there."""
    behind.answer = gate = Gate()
    with proxy(INFERENCE=behind.address) as made, ThreadPoolExecutor(1) as pool:
        held = pool.submit(made.ask, body=bytes(5_000_000))
        wait_until(lambda: len(behind.seen) == 1)
        run = made.folder / "run"
        assert made.process is not None
        written = [path for pid in (*made.workers(), made.process.pid) for path in written_files(pid)]
        gate.open.set()
        assert held.result().status == 200
        assert any(path.is_relative_to(run / "body") for path in written), written
        allowed = (run, made.folder / "stderr", Path("/dev"))
        assert [path for path in written if not any(path.is_relative_to(folder) for folder in allowed)] == []
        assert (run / "conf" / "secrets.conf").stat().st_mode & 0o077 == 0


def written_files(pid: int) -> list[Path]:
    """What a process has open for writing, sockets and pipes left out."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(descriptor)
        flags = int(
            (Path(f"/proc/{pid}/fdinfo") / descriptor.name).read_text().split("flags:")[1].split()[0], 8
        )
        if target.startswith("/") and flags & os.O_ACCMODE != os.O_RDONLY:
            found.append(Path(target.removesuffix(" (deleted)")))
    return found


def test_the_request_limit_is_torchserves_own() -> None:
    properties = (ROOT / "serve_config" / "config.properties").read_text()
    assert "\nmax_request_size=33554432\n" in properties
    assert " 33554432\n" in (ROOT / "deploy" / "nginx" / "entrypoint.sh").read_text()
