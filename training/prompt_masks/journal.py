"""The journal of a run: a line for every image that is done, on the disk before the next; a killed run goes on by it.

It lies beside the output as NAME.journal, and goes once that is written. Its first line says what the masks depend on:
of another segmenter or another annotation file nothing is taken over.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from training.prompt_masks.objects import Mask

FORMAT = 1
Header = dict[str, Any]


def journal_of(out: Path) -> Path:
    """The path of the journal of an output file."""
    return out.with_name(f"{out.name}.journal")


class Journal:
    """An open journal: what it holds, and the place to write the next image.

    done: masks of images by the images' rows, each by the places of its objects.
    """

    def __init__(self, file: IO[bytes], done: dict[int, dict[int, Mask]]) -> None:
        self._file = file
        self.done = done

    def add(self, row: int, masks: dict[int, Mask]) -> None:
        """Write an image down; it is on the disk when this returns."""
        objects = [[place, mask.runs, mask.quality] for place, mask in masks.items()]
        self._file.write(json.dumps({"image": row, "masks": objects}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done[row] = masks


@contextlib.contextmanager
def opened(path: Path, header: Header) -> Iterator[Journal]:
    """The journal at `path`, made where there is none; a last line that was not finished is cut off.

    Raises:
        ValueError: it is of another run, is no journal, or another process writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, **header}
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{path}: another process is making these masks; wait for it, or stop it"
            ) from error
        file.seek(0)
        text = file.read()
        first = json.dumps(header).encode() + b"\n"
        whole = text[: text.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if lines or not first.startswith(text):
            _check(path, (lines or [text])[0], header)
        file.truncate(len(whole))
        if not lines:
            file.write(first)
        yield Journal(file, dict(_image(path, line) for line in lines[1:]))


def _check(path: Path, line: bytes, header: Header) -> None:
    """ValueError where the first line of a journal is not that of this run."""
    try:
        there = json.loads(line)
    except ValueError:
        there = None
    if not isinstance(there, dict) or there.get("format") != FORMAT:
        raise ValueError(f"{path}: is no journal of this program; move it away, or take another --out")
    for key, value in header.items():
        if there.get(key) != value:
            raise ValueError(
                f"{path}: was begun with another {key} ({there.get(key)}; now {value}): start as it was begun, take "
                "another --out, or delete it to begin anew"
            )


def _image(path: Path, line: bytes) -> tuple[int, dict[int, Mask]]:
    try:
        entry = json.loads(line)
        return entry["image"], {place: Mask(runs, quality) for place, runs, quality in entry["masks"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: a line that cannot be read; delete the file to begin anew") from error
