"""What every part does in one way: files that are whole or not there, hints and lists in messages, how a command ends.

No torch is needed for it, so that commands without it start at once.
"""

import argparse
import contextlib
import difflib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole(path: Path, *, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to write `path` through; an error within leaves what was there before, and nothing else.

    Written beside the target, brought to the disk, then renamed: whoever reads `path`, at whatever moment the writer is
    killed, finds the old file or the new one. What killed writers leave, `remove_unfinished` takes away.

    Args:
        path: of the file; its folder is made.
        mode: "wb", or "w" for text in UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = tempfile.NamedTemporaryFile(  # noqa: SIM115  # it outlives its block under another name
        mode,
        dir=path.parent,
        prefix=f".{path.name}.",
        suffix=".unfinished",
        delete=False,
        encoding=None if "b" in mode else "utf-8",
    )
    temporary = Path(file.name)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, contents: bytes | str) -> None:
    """Write bytes, or text in UTF-8, through `whole`."""
    with whole(path) as file:
        file.write(contents.encode() if isinstance(contents, str) else contents)


def remove_unfinished(path: Path) -> None:
    """Take away what writers of `path` that were killed have left beside it."""
    for left in path.parent.glob(f".{path.name}.*.unfinished"):
        with contextlib.suppress(OSError):
            left.unlink()


def did_you_mean(
    word: str,
    known: Iterable[str],
    *,
    before: str = "; ",
    cutoff: float = 0.6,
    shown: Callable[[str], str] = str,
) -> str:
    """ "; did you mean WORD?" with the known word that is nearest to `word`; empty where none is near.

    Args:
        before: what stands before it.
        cutoff: how alike two words must be, 0 to 1.
        shown: how the nearest word is written.
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"{before}did you mean {shown(near[0])}?" if near else ""


def first_few(values: Sequence[str], most: int = 8, *, separator: str = ", ") -> str:
    """The first values of a list, with "..." for those that are left out."""
    return separator.join(values[:most]) + (f"{separator}..." if len(values) > most else "")


def one_line(error: BaseException) -> str:
    """The message of an error in one line; of one that a data loader's worker passed on, its own last line."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if not lines[0].startswith("Caught "):
        return " ".join(line.strip() for line in lines)
    kind, colon, message = lines[-1].partition(": ")
    return message if colon and kind.endswith("Error") else lines[-1]


def command(module: str, about: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`, described by the first line of `about`, its docstring."""
    return argparse.ArgumentParser(prog=f"python -m {module}", description=(about or "").splitlines()[0])


class ExitStatus:
    """The status with which a command ends: 0, or what its block or its end has set."""

    code = 0


@contextmanager
def exit_status(
    *mistakes: type[BaseException], interrupted: str = "", shown: Callable[[BaseException], str] = str
) -> Iterator[ExitStatus]:
    """The block of a command line: a mistake in it is named on standard error in place of a trace, and the status is 2.

    Args:
        mistakes: errors that a user can mend, besides ValueError and OSError.
        interrupted: what is said to a Ctrl-C, after which the status is 130. Empty: it goes on up.
        shown: the message of an error.
    """
    status = ExitStatus()
    named: tuple[type[BaseException], ...] = (ValueError, OSError, *mistakes)
    try:
        yield status
    except named as error:
        print(f"error: {shown(error)}", file=sys.stderr)
        status.code = 2
    except KeyboardInterrupt:
        if not interrupted:
            raise
        print(interrupted, file=sys.stderr)
        status.code = 130


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Bring the renaming itself to the disk, where the system can do that for folders."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
