"""The file of one view: tensors of every image of a data set, one record after another, read where they lie.

After the records come an index, as JSON, and its length in 8 bytes. A file is whole or not there (`model.files.whole`).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.files import whole
from model.host import Layout, packed, unpacked

LENGTH = 8
"""Bytes at the end that hold the length of the index, the least significant first."""


def write_view(path: Path, records: Iterable[list[Tensor]], settings: dict[str, str]) -> None:
    """Write the tensors of each image, on the CPU, in the order of the data set.

    Args:
        settings: what they were computed from; read back by `ViewFile.settings`.

    Raises:
        OSError: no room, or the folder cannot be written to. Then there is no file.
    """
    rows: list[tuple[int, list[Any]]] = []
    start = 0
    with whole(path) as file:
        for tensors in records:
            buffer, layouts = packed(tensors)
            file.write(buffer.numpy().tobytes())
            rows.append((start, [(str(dtype).removeprefix("torch."), *rest) for dtype, *rest in layouts]))
            start += buffer.numel()
        index = json.dumps({"settings": settings, "rows": rows, "bytes": start}).encode()
        file.write(index + len(index).to_bytes(LENGTH, "little"))


class ViewFile:
    """A file that `write_view` has written, mapped into memory: nothing is read before it is asked for.

    Raises:
        ValueError: it is damaged, which nothing but a hand or a disk can have done.
    """

    def __init__(self, path: Path) -> None:
        # Copy-on-write, or torch would warn of memory that it may not write to; nobody does.
        self._bytes: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="c")
        try:
            end = len(self._bytes) - LENGTH
            length = int.from_bytes(self._bytes[end:].tobytes(), "little")
            index = json.loads(self._bytes[end - length : end].tobytes())
            whole = index["bytes"] == end - length
            self._rows: list[tuple[int, list[Layout]]] = [
                (
                    start,
                    [(getattr(torch, dtype), tuple(shape), at, size) for dtype, shape, at, size in tensors],
                )
                for start, tensors in index["rows"]
            ]
            self.settings: dict[str, str] = index["settings"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: damaged: {error}") from error
        if not whole:
            raise ValueError(
                f"{path}: damaged: {end - length} bytes before its index, which says {index['bytes']}"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> list[Tensor]:
        """The tensors of one image: views of the file."""
        start, layouts = self._rows[row]
        _, _, last, size = layouts[-1]
        return unpacked(torch.from_numpy(self._bytes[start : start + last + size]), layouts)
