"""Reads the files of a part in a task of Ray; apart from the rest, so that such a task has no use for torch."""

import json
from typing import Any

from offline.store import Store


class Reader:
    """The files of a part, each with why it could not be read."""

    def __init__(self, images: str) -> None:
        self._images = images

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with the part's `number` and its `images` -> with their `data`, bytes, and `errors` too."""
        read = Store(self._images).read_each([name for _, name in json.loads(row["images"])])
        errors = [None if isinstance(one, bytes) else str(one) or type(one).__name__ for one in read]
        data = [one if isinstance(one, bytes) else b"" for one in read]
        return {**row, "data": data, "errors": json.dumps(errors)}
