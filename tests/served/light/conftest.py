"""Light servers and pools of an archive without a network."""

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.light.pool import PoolSettings
from tests.served.light.fake import fake_archive
from tests.served.machine import Machine, make_machine

Start = Callable[..., Machine]


@pytest.fixture
def settings(tmp_path: Path) -> PoolSettings:
    return PoolSettings(
        batch_size=4,
        delay=0.2,
        workers=1,
        queue=20,
        gpus=0,
        response_timeout=20.0,
        startup_timeout=60.0,
        answer_timeout=60.0,
        log=tmp_path / "model_log.log",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with zipfile.ZipFile(fake_archive(tmp_path / "maskx.mar")) as file:
        file.extractall(tmp_path / "archive")
    return tmp_path / "archive"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts one, with a model-config.yaml and arguments; it is ended at last."""
    with ExitStack() as stack:

        def started(*arguments: str, config: str = "{}") -> Machine:
            machine = make_fake_machine(tmp_path / "machine", config)
            stack.callback(machine.end)
            done = machine.start("--engine", "light", *arguments)
            assert done.returncode == 0, done.stderr
            machine.started = done.stdout
            return machine

        yield started


def make_fake_machine(folder: Path, config: str = "{}") -> Machine:
    """A machine that is not started yet."""
    folder.mkdir()
    archive = fake_archive(folder / "maskx.mar", config=config)
    archive.with_name("maskx.mar.sha256").write_text(f"{sha256(archive)}  maskx.mar\n")
    return make_machine(folder, archive)


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
