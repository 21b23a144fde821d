"""A few pictures of a set, decoded: whether they came out dark or empty, as 16-bit pictures read wrongly do."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.coco import CocoDataset, read_picture

NARROW = 32
"""A picture of fewer than this many of 256 steps of brightness uses a small part of its range."""


@dataclass(frozen=True, kw_only=True)
class Brightness:
    """Of a decoded picture: whether all its pixels are the same, and the values below which 0.5 and 99.5 % lie."""

    path: Path
    constant: bool
    low: float
    high: float


def sampled(count: int, of: int, seed: int) -> list[int]:
    """Up to `count` rows, drawn without replacement by a generator of their own, ascending."""
    return sorted(random.Random(seed).sample(range(of), min(count, of)))


def brightness(data: CocoDataset, rows: Sequence[int]) -> tuple[list[Brightness], list[str]]:
    """That of the pictures of these rows, as training gets them; and one line for each that does not decode."""

    def look(row: int) -> Brightness | str:
        height, width = data.size(row)
        try:
            pixels = read_picture(data.path(row), width=width, height=height)
        except ValueError as error:
            return str(error)
        low, high = np.percentile(pixels[:: 1 + height // 256, :: 1 + width // 256], (0.5, 99.5))
        return Brightness(
            path=data.path(row),
            constant=bool((pixels == pixels[0, 0]).all()),
            low=float(low),
            high=float(high),
        )

    with ThreadPoolExecutor(2) as pool:
        seen = list(pool.map(look, rows))
    return [one for one in seen if not isinstance(one, str)], [one for one in seen if isinstance(one, str)]


def doubtful_pictures(name: str, data: CocoDataset, rows: Sequence[int]) -> list[str]:
    """What to warn of in the pictures of these rows."""
    seen, broken = brightness(data, rows)
    said = []
    if broken:
        said.append(
            f"{name}: {len(broken)} of {len(rows)} images looked at do not decode; first: {broken[0]}"
        )
    if constant := [one for one in seen if one.constant]:
        said.append(
            f"{name}: {len(constant)} of {len(seen)} images looked at are of one colour throughout; first: "
            f"{constant[0].path}"
        )
    narrow = [one for one in seen if not one.constant and one.high - one.low < NARROW]
    if 2 * len(narrow) > len(seen):
        first = narrow[0]
        dark = "nearly black" if first.high < NARROW else "of little contrast"
        said.append(
            f"{name}: {len(narrow)} of {len(seen)} images looked at use a small part of their range; first: "
            f"{first.path}, {dark}, from {first.low:.0f} to {first.high:.0f} of 255. If that is no night, write them "
            "with values over the whole range of their type (16-bit sensors of 12 bits: times 16)"
        )
    return said
