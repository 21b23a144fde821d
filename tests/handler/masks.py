"""Masks to try things on, and their run lengths."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st


def run_lengths_of(masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """counts and offsets of masks, bool [h, w] each, as `maskx_answer.Detections` has them."""
    runs = []
    for mask in masks:
        flat = mask.T.reshape(-1)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], flat))))
        runs.append(np.diff(np.concatenate(([0], edges, [flat.size]))))
    counts = np.concatenate([np.zeros(0, np.int64), *runs]).astype(np.int64)
    return counts, np.cumsum([0, *map(len, runs)])


def blob(seed: int, height: int, width: int, coarse: int) -> np.ndarray:
    """bool [h, w]: smooth pieces, some with holes, from noise of `coarse` x `coarse` samples."""
    noise = np.random.default_rng(seed).random((coarse, coarse))
    y, x = (np.linspace(0, coarse - 1, side) for side in (height, width))
    rows, columns = np.minimum(y.astype(int), coarse - 2), np.minimum(x.astype(int), coarse - 2)
    down, right = (y - rows)[:, None], (x - columns)[None, :]
    corners = [noise[np.ix_(rows + i, columns + j)] for i in (0, 1) for j in (0, 1)]
    upper = corners[0] * (1 - right) + corners[1] * right
    lower = corners[2] * (1 - right) + corners[3] * right
    mixed: np.ndarray = upper * (1 - down) + lower * down > 0.5
    return mixed


@st.composite
def drawn_masks(draw: st.DrawFn) -> list[np.ndarray]:
    """Up to four masks of one small image: noise of any density, stripes, frames in frames, all or nothing."""
    height, width = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    y, x = np.indices((height, width))
    kinds = {
        "nothing": np.zeros((height, width), bool),
        "all": np.ones((height, width), bool),
        "frames": np.minimum.reduce([y, x, height - 1 - y, width - 1 - x]) % 2 == 0,
        "columns": x % 2 == 1,
        "rows": y % 2 == 0,
        "chessboard": (x + y) % 2 == 0,
        "diagonal": (x == y) | (x == y + 1),
    }
    masks = []
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from([*kinds, "noise", "noise", "noise"]))
        if kind == "noise":
            seed, share = draw(st.integers(0, 2**32 - 1)), draw(st.floats(0, 1))
            masks.append(np.random.default_rng(seed).random((height, width)) < share)
        else:
            masks.append(kinds[kind])
    return masks
