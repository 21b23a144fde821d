"""Run lengths -> the pixels of each mask, column by column, of all masks of an image at once.

What outlines and pictures of masks are made from; costs as much as the masks have columns, not as the image has pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Vertical strips of one pixel's width that the masks consist of, by mask, column and row; none touch in a column.

    masks, columns, tops, bottoms: int64 [I]; the pixels from row `tops` to before row `bottoms`.
    starts: int64 [D + 1], from 0 to I; those of mask d are starts[d]:starts[d + 1].
    """

    masks: np.ndarray
    columns: np.ndarray
    tops: np.ndarray
    bottoms: np.ndarray
    starts: np.ndarray


def column_intervals(counts: np.ndarray, offsets: np.ndarray, *, height: int) -> Intervals:
    """The intervals of D masks.

    Args:
        counts: int64 [total], from 0: the masks' column-major run lengths, each mask's beginning with background.
        offsets: int64 [D + 1], from 0 to total; the run lengths of mask d are counts[offsets[d]:offsets[d + 1]], and
            they cover the image.
        height: of the image, in pixels.
    """
    ends = np.cumsum(counts, dtype=np.int64)
    # The last run of a mask ends where the next mask begins: positions count on from mask to mask.
    places = np.arange(len(counts))
    lengths = np.diff(offsets)
    place_in_mask = places - np.repeat(offsets[:-1], lengths)
    inside = (place_in_mask % 2 == 1) & (counts > 0)
    masks = np.repeat(np.arange(len(lengths)), lengths)[inside]
    last = ends[inside]
    first = last - counts[inside]
    base = np.concatenate([np.zeros(1, np.int64), ends])[offsets[:-1]]
    first -= base[masks]
    last -= base[masks]
    # Runs with a background of no pixels between them are one.
    joined = (first[1:] == last[:-1]) & (masks[1:] == masks[:-1])
    first = first[np.concatenate([[True], ~joined])[: len(first)]]
    last = last[np.concatenate([~joined, [True]])[: len(last)]]
    masks = masks[np.concatenate([[True], ~joined])[: len(masks)]]

    column = first // height
    pieces = (last - 1) // height - column + 1
    before = np.cumsum(pieces) - pieces
    columns = np.repeat(column - before, pieces) + np.arange(int(pieces.sum()))
    masks = np.repeat(masks, pieces)
    tops = np.maximum(np.repeat(first, pieces) - columns * height, 0)
    bottoms = np.minimum(np.repeat(last, pieces) - columns * height, height)
    starts = np.searchsorted(masks, np.arange(len(lengths) + 1))
    return Intervals(masks=masks, columns=columns, tops=tops, bottoms=bottoms, starts=starts)
