"""Files of a folder or a bucket, by fsspec: `photos/`, `s3://bucket/photos`, `gs://...`, whatever has a driver."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

READERS = 8
"""Files read at a time, which hides the latency of a bucket."""

UNFINISHED = ".unfinished"


def read_address(address: str) -> bytes:
    """The contents of one file anywhere. Raises ValueError where it cannot be read."""
    try:
        fs, path = url_to_fs(address)
        data: bytes = fs.cat_file(path)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{address} cannot be read: {error}") from error
    return data


class Store:
    """One folder or bucket; names are relative to it, with slashes.

    Raises ValueError: no driver for the address, or it is not installed.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            self._fs, root = url_to_fs(address)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{address} cannot be opened: {error}") from error
        self._root = str(root).rstrip("/")

    def names(self, suffixes: Iterable[str] = ()) -> list[str]:
        """Names of all files below, sorted; of those that end in one of `suffixes`, in any case, where there are any.

        Files and folders whose names begin with a dot are left out.
        """
        allowed = set(suffixes)
        found = []
        for path in self._fs.find(self._root):
            name = str(path)[len(self._root) :].lstrip("/")
            parts = PurePosixPath(name)
            hidden = any(part.startswith(".") for part in parts.parts)
            if name and not hidden and (not allowed or parts.suffix.lower() in allowed):
                found.append(name)
        return sorted(found)

    def read(self, name: str) -> bytes:
        """A file's contents. Raises OSError where it cannot be read."""
        data: bytes = self._fs.cat_file(self._path(name))
        return data

    def read_each(self, names: Iterable[str]) -> list[bytes | OSError]:
        """The contents of several, or why one could not be read."""

        def read(name: str) -> bytes | OSError:
            try:
                return self.read(name)
            except OSError as error:
                return error

        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(read, names))

    def read_json(self, name: str) -> Any:
        """A file's contents as JSON; None where there is no such file or it is broken, as after a loss of power."""
        try:
            return json.loads(self.read(name))
        except (OSError, ValueError):
            return None

    def write(self, name: str, pieces: Iterable[bytes]) -> None:
        """Writes a file whole or not at all: under another name first."""
        path = self._path(name)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        with self._fs.open(path + UNFINISHED, "wb") as file:
            for piece in pieces:
                file.write(piece)
        self._fs.mv(path + UNFINISHED, path)

    def write_json(self, name: str, content: Any) -> None:
        """`write` of a value as JSON."""
        self.write(name, [json.dumps(content, separators=(",", ":")).encode("ascii")])

    def remove(self, name: str) -> None:
        """Removes a file where it exists."""
        if self._fs.exists(self._path(name)):
            self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"
