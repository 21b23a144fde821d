"""What is measured lives in a process of its own, with its own allocator and memory; the bench tells it when to run.

One JSON object a line: `{"method", "arguments"}` in, `{"answer"}` or `{"error"}` out. Only one side runs at a time.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from benchmarks import ROOT
from server.settings import SPIN


class Remote:
    """An object in a process of its own, whose methods are called by name; or a function's answer, in `answer`."""

    def __init__(self, target: str, **options: Any) -> None:
        """Starts the process. `target` is "module:name" of a class or function, `options` its keyword arguments."""
        self.target = target
        command = [sys.executable, "-m", "benchmarks.worker", target, json.dumps(options)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = {**SPIN, **os.environ, "PYTHONWARNINGS": "ignore"}  # as a server's worker has it
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        try:
            self.answer = self._read()
        except RuntimeError:
            self.close()
            raise

    def call(self, method: str, **arguments: Any) -> Any:
        """The answer of the object's method. RuntimeError: it failed, with its traceback, or its process has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading tells how it ended
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process; it has nothing to lose."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # what it did not read while it ended
                self._process.stdin.close()
        self._process.wait(timeout=60)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        self.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise RuntimeError(
                f"the process of {self.target} ended with status {status} (-9: killed, mostly for want of memory)"
            )
        message = json.loads(line)
        if "error" in message:
            raise RuntimeError(f"{self.target}: {message['error']}")
        return message["answer"]


def apart(function: str, **arguments: Any) -> Any:
    """What the function "module:name" answers in a process of its own. Raises RuntimeError where it fails."""
    with Remote(function, **arguments) as remote:
        return remote.answer


def prepared_apart(folder: Path, picture: str, classes: int, **sizes: int) -> dict[str, Any]:
    """`benchmarks.speed.network.prepare` in a process of its own."""
    where = {"folder": str(folder), "picture": picture, "classes": classes}
    about: dict[str, Any] = apart("benchmarks.speed.network:prepare", **where, **sizes)
    return about


def found(target: str) -> Callable[..., Any]:
    """The class or function "module:name"."""
    module, _, name = target.partition(":")
    named: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return named


def main() -> None:
    """Serves what the command line names until its input ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # whatever prints must not come between the answers
    warnings.simplefilter("ignore")

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        target = found(sys.argv[1])
        made = target(**json.loads(sys.argv[2]))
        say({"answer": None if isinstance(target, type) else made})
        for line in sys.stdin:
            message = json.loads(line)
            say({"answer": getattr(made, message["method"])(**message["arguments"])})
    except Exception:
        say({"error": traceback.format_exc()})


if __name__ == "__main__":
    main()
