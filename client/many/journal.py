"""What a run over many images has been answered so far, so that a run that was killed goes on.

A text file of JSON lines: the first says what was asked, each other holds one answer and which file it was for. It is
only ever appended to; a line that was cut off by the end of the process is not counted.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from .files import ImageFile


class Journal:
    """Answers by file name; a file that was changed since it was answered counts as not answered.

    Args:
        path: of the journal; made where it is not there.
        asked: the model and the parameters; answers to other ones cannot be mixed.

    Raises:
        ValueError: the file is not a journal, or is that of a run that asked otherwise.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        self.path = path
        self._at: dict[str, tuple[int, list[int]]] = {}
        head = json.dumps({"maskx_journal": 1, "asked": asked}, sort_keys=True).encode() + b"\n"
        self._file: BinaryIO = path.open("a+b")
        try:
            self._read(head)
        except BaseException:
            self._file.close()
            raise

    def _read(self, head: bytes) -> None:
        self._file.seek(0)
        first = self._file.readline()
        if first and first != head:
            if first.endswith(b"\n") or not head.startswith(first):
                raise ValueError(
                    f"{self.path} was begun with other parameters or another model; remove it to begin anew, or "
                    "write to another file"
                )
            first = b""  # cut off within the head
        whole = len(first)
        while first and (line := self._file.readline()).endswith(b"\n"):
            entry = json.loads(line)
            self._at[entry["name"]] = (whole, entry["file"])
            whole += len(line)
        self._file.truncate(whole)
        if not first:
            self._file.write(head)
            self._file.flush()

    def has(self, image: ImageFile) -> bool:
        """Whether the file, as it is now, was answered."""
        found = self._at.get(image.name)
        return found is not None and found[1] == _state(image.path)

    def add(self, image: ImageFile, answer: Mapping[str, Any]) -> None:
        """Keeps an answer; it is on its way to the disk when this returns."""
        state = _state(image.path)
        line = json.dumps({"name": image.name, "file": state, "answer": answer}, separators=(",", ":"))
        self._file.seek(0, 2)
        at = self._file.tell()
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self._at[image.name] = (at, state)

    def answer(self, image: ImageFile) -> dict[str, Any]:
        """The answer that was kept for a file."""
        self._file.seek(self._at[image.name][0])
        found: dict[str, Any] = json.loads(self._file.readline())["answer"]
        return found

    def answers(self, images: list[ImageFile]) -> Iterator[tuple[ImageFile, dict[str, Any]]]:
        """The files that were answered, in their order, with their answers; one is in memory at a time."""
        for image in images:
            if self.has(image):
                yield image, self.answer(image)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _state(path: Path) -> list[int]:
    """Size in bytes and time of the last change."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
