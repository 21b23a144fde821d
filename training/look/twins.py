"""Images that are there twice: in one set under two entries, or in training and validation both."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from training.data.packing import PackedAnnotations

_THREADS = 8
_END = 4096


def paths_of(packed: PackedAnnotations, images_dir: str) -> list[str]:
    """The file of each image."""
    folder = os.path.abspath(images_dir)
    return [os.path.normpath(os.path.join(folder, os.fsdecode(bytes(name)))) for name in packed.file_names]


def same(keys: Iterable[Hashable]) -> list[list[int]]:
    """Positions of keys that are there more than once, those of one key together."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for at, key in enumerate(keys):
        if key is not None:
            found[key].append(at)
    return [places for places in found.values() if len(places) > 1]


def same_contents(paths: Sequence[str]) -> list[list[int]]:
    """Positions of files with the same bytes. Only files of one length are opened; unreadable ones are passed over.

    Of those the last 4 KiB are compared first, so that whole files are read only where all speaks for it.
    """
    with ThreadPoolExecutor(_THREADS) as pool:

        def narrowed(groups: list[list[int]], key: Any) -> list[list[int]]:
            places = [at for group in groups for at in group]
            keys = pool.map(key, (paths[at] for at in places), chunksize=64)
            number = {at: group for group, members in enumerate(groups) for at in members}
            return [
                [places[i] for i in found]
                for found in same(
                    None if one is None else (number[at], one) for at, one in zip(places, keys, strict=True)
                )
            ]

        groups = [list(range(len(paths)))]
        for key in (_length, _end, _digest):
            groups = narrowed(groups, key)
    return groups


def _length(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return None


def _end(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - _END, 0))
            return hashlib.blake2b(file.read(), digest_size=16).digest()
    except (OSError, ValueError):
        return None


def _digest(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except (OSError, ValueError):
        return None


def of_one_name(train: Sequence[str], val: Sequence[str], most: int) -> tuple[list[str], list[str]]:
    """Up to `most` files of each set whose base name the other set has too, spread evenly; the quickest guess."""
    names = {os.path.basename(path) for path in train} & {os.path.basename(path) for path in val}
    if not names:
        return [], []
    kept = sorted(names)
    kept = kept[:: -(-len(kept) // most)]
    chosen = set(kept)
    return (
        [path for path in train if os.path.basename(path) in chosen],
        [path for path in val if os.path.basename(path) in chosen],
    )
