"""Logits of prompted masks -> COCO run lengths in the image's pixels, clipped to the boxes; no image is ever drawn.

A pixel belongs to the object where the logits, sampled bilinearly at its centre, are 0 or more, and where its box
touches it. Down one image column the logits are linear between the network's own rows, so the rows where they cross 0
have a closed form, as in `model.masks.run_lengths`.
"""

from collections.abc import Sequence
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from training.prompt_masks.segmenter import Embedding, Frame, Prompted

Runs = dict[str, Any]
"""{"size": [height, width], "counts": compressed text}, as in a COCO file."""


def pixel_masks(prompted: Prompted, embedding: Embedding, boxes: NDArray[np.float32]) -> list[Runs]:
    """The masks of N boxes (XYXY [N, 4] in pixels of the image) as COCO run lengths, of no pixel where none is left."""
    return [
        _encoded(_toggles(logits, box, embedding.frame), embedding.frame)
        for logits, box in zip(prompted.logits, boxes.tolist(), strict=True)
    ]


def area_of(runs: Runs) -> int:
    """Pixels of a mask."""
    return int(mask_utils.area({**runs, "counts": runs["counts"].encode()}))


def _window(box: Sequence[float], frame: Frame) -> tuple[int, int, int, int]:
    """The pixels that a box touches, XYXY with exclusive ends, inside the image."""
    x0, y0 = (
        min(max(floor(v), 0), most) for v, most in zip(box[:2], (frame.width, frame.height), strict=True)
    )
    x1, y1 = (
        min(max(ceil(v), 0), most) for v, most in zip(box[2:], (frame.width, frame.height), strict=True)
    )
    return x0, y0, x1, y1


def _toggles(logits: NDArray[np.float32], box: Sequence[float], frame: Frame) -> NDArray[np.int64]:
    """Where the mask begins and ends, alternately: column-major positions in the image, ascending, each once."""
    x0, y0, x1, y1 = _window(box, frame)
    if x1 <= x0 or y1 <= y0:
        return np.zeros(0, np.int64)
    side = logits.shape[0]
    across = frame.seen_width / frame.width * side / frame.side
    down = frame.seen_height / frame.height * side / frame.side
    """Samples of the logits to a pixel."""
    u = ((np.arange(x0, x1) + 0.5) * across - 0.5).clip(0, side - 1)
    left = u.astype(np.int64).clip(max=side - 2)
    share = (u - left).astype(np.float32)[:, None]
    first = min(max(floor((y0 + 0.5) * down - 0.5), 0), side - 2)
    last = min(max(ceil((y1 - 0.5) * down - 0.5), first + 1), side - 1)
    samples = np.ascontiguousarray(logits[first : last + 1].T)  # a row is a column of the canvas
    profiles = samples[left] * (1 - share) + samples[left + 1] * share
    inside = np.pad(profiles >= 0, ((0, 0), (1, 1)))
    column, knot = np.nonzero(inside[:, 1:] != inside[:, :-1])
    row = _rows(profiles, column, knot, first=first, down=down).clip(y0, y1)
    row[knot == 0], row[knot == profiles.shape[1]] = y0, y1
    positions, times = np.unique((x0 + column) * frame.height + row, return_counts=True)
    return positions[times % 2 == 1]  # a run of no pixel, or two that touch from one column to the next


def _rows(
    profiles: NDArray[np.float32],
    column: NDArray[np.int64],
    knot: NDArray[np.int64],
    *,
    first: int,
    down: float,
) -> NDArray[np.int64]:
    """Rows of the image at which profiles [columns, samples] change: the first inside, or the first outside again.

    `knot`: the number of the sample behind each change; those at the ends, where nothing is crossed, mean nothing.
    """
    behind = knot.clip(1, profiles.shape[1] - 1)
    above = profiles[column, behind - 1].astype(np.float64)
    below = profiles[column, behind].astype(np.float64)
    steps = np.where(above == below, 1.0, above - below)
    crossing = (first + behind - 1 + above / steps + 0.5) / down - 0.5
    return np.where(below >= 0, np.ceil(crossing), np.floor(crossing) + 1).astype(np.int64)


def _encoded(toggles: NDArray[np.int64], frame: Frame) -> Runs:
    size = frame.height * frame.width
    counts = np.diff(toggles, prepend=0, append=size).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    runs = {"size": [frame.height, frame.width], "counts": counts}
    coded = mask_utils.frPyObjects(runs, frame.height, frame.width)["counts"]
    return {"size": [frame.height, frame.width], "counts": coded.decode("ascii")}
