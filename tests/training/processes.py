"""Commands as processes of their own that begin with torch imported: forked from one that did it, once a session.

Started anew, a process takes some seconds for that; where the start is not the question, this spares them.
`torchrun -m` itself is started in test_distributed.py.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["training.train", "training.evaluate.__main__", "training.experiments.__main__"]
)
SECONDS = 280
"""After which a process is ended, and the test fails."""


@dataclass(frozen=True)
class Begun:
    """A process, in a group of its own, and the file of what it writes to standard output and standard error."""

    process: BaseProcess
    output: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def ended(self) -> tuple[int, str]:
        """Status, negative where it was a signal, and output."""
        self.process.join(SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        status, text = self.process.exitcode, self.output.read_text()
        assert status is not None
        return status, text


def begin(
    module: str,
    *words: str,
    output: Path,
    before: Callable[[], None] | None = None,
    environment: dict[str, str] | None = None,
) -> Begun:
    """`python -m module words`, after `before()`, which can be pickled; `output` is added to where it is there."""
    arguments = (module, words, output, before, environment or {}, multiprocessing.get_start_method())
    process = _CONTEXT.Process(target=_command, args=arguments)
    process.start()
    return Begun(process, output)


def begin_two(module: str, *words: str, folder: Path) -> list[Begun]:
    """Two processes of a command that do it together, by the variables that torchrun sets."""
    folder.mkdir(exist_ok=True)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        begin(
            module,
            *words,
            output=folder / f"process{rank}.txt",
            environment={**group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]


def _command(
    module: str,
    words: tuple[str, ...],
    output: Path,
    before: Callable[[], None] | None,
    environment: dict[str, str],
    method: str,
) -> None:
    os.setsid()
    multiprocessing.set_start_method(
        method, force=True
    )  # of loader workers; the one of this process is another
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    os.environ.update(environment)
    if before is not None:
        before()
    sys.exit(import_module(module).main(list(words)))
