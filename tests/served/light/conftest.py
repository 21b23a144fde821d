"""Light servers of an archive without a network, each in a process of its own."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.served.light.fake import fake_archive
from tests.served.machine import Machine, make_machine

Start = Callable[..., Machine]


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
