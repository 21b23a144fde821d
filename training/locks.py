"""Locks between processes on one machine: who makes a thing that others then use."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Busy(Exception):
    """Another process holds a lock."""


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a file, which a process that ends gives back.

    Raises:
        Busy: another process has it, and `wait` is not asked for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise Busy(str(path)) from error
            print(f"{path}: waiting for the process that holds it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
