"""Outlines of masks along the edges of their pixels, from run lengths, of all masks of an image at once.

Every interval of a column (maskx_intervals) has an edge above and one below. On the line between two columns the ends
of these edges, from top to bottom, are joined two by two: that is where one column is inside the mask and the other is
not. So each edge has one before and one after it, and all lie in rings, clockwise around what is inside (y points
down) and counterclockwise around holes. Pixels that touch at a corner only belong together, as for OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskx_intervals import Intervals


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """R rings of the corners where an outline turns, at whole pixels; of each ring one after the other, not repeated.

    x, y: int64 [P]. starts: int64 [R + 1], from 0 to P; the corners of ring r are starts[r]:starts[r + 1]. Its first is
    the upper of its leftmost ones.
    masks: int64 [R], which mask a ring belongs to; never falls.
    outer: int64 [R], the ring around the whole piece that a ring bounds: itself, or for a hole the one around it.
    areas: int64 [R], pixels within, below 0 for a hole. lengths: int64 [R], pixel edges.
    """

    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    masks: np.ndarray
    outer: np.ndarray
    areas: np.ndarray
    lengths: np.ndarray


def outlines(intervals: Intervals) -> Outlines:
    """The outlines of all masks; none of a mask without a pixel."""
    count = len(intervals.tops)
    if count == 0:
        none = np.zeros(0, np.int64)
        one = np.zeros(1, np.int64)
        return Outlines(x=none, y=none, starts=one, masks=none, outer=none, areas=none, lengths=none)
    # Edges: 2i above interval i, from left to right; 2i + 1 below it, from right to left.
    edge_y = np.stack([intervals.tops, intervals.bottoms], axis=1).reshape(-1)
    ring_edges, ring_starts = _rings(_next_edges(intervals, edge_y))
    x, y, starts, lengths = _corners(intervals, edge_y, ring_edges, ring_starts)
    below = ring_edges % 2
    ring_y = edge_y[ring_edges]
    ring_of = np.empty(2 * count, np.int64)
    ring_of[ring_edges] = np.repeat(np.arange(len(ring_starts) - 1), np.diff(ring_starts))
    areas = np.add.reduceat(np.where(below == 1, ring_y, -ring_y), ring_starts[:-1])
    return Outlines(
        x=x,
        y=y,
        starts=starts,
        masks=intervals.masks[ring_edges[ring_starts[:-1]] // 2],
        outer=_outer(ring_of, areas),
        areas=areas,
        lengths=lengths,
    )


def _next_edges(intervals: Intervals, edge_y: np.ndarray) -> np.ndarray:
    """For each edge the one that follows it, int64 [2I]."""
    edges = len(edge_y)
    lines, rows = int(intervals.columns.max()) + 2, int(edge_y.max()) + 1
    line = np.repeat(intervals.masks * lines + intervals.columns, 2)
    # Where two ends meet, the one above an interval comes first: so the pixels of either side hang together.
    below = np.arange(edges) % 2
    left_ends = (line * rows + edge_y) * 2 + below
    order = np.argsort(np.concatenate([left_ends, left_ends + 2 * rows]), kind="stable")
    partner = np.empty(2 * edges, np.int64)
    partner[order[0::2]] = order[1::2]
    partner[order[1::2]] = order[0::2]
    leaves = np.arange(edges) + np.where(below == 1, 0, edges)
    return partner[leaves] % edges


def _rings(next_edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edges ring by ring, int64 [2I], and where each ring begins, int64 [R + 1]; first is its leftmost, upmost."""
    follows = next_edges.tolist()
    seen = bytearray(len(follows))
    edges: list[int] = []
    starts = [0]
    edge = 0
    while edge >= 0:
        while not seen[edge]:
            seen[edge] = 1
            edges.append(edge)
            edge = follows[edge]
        starts.append(len(edges))
        edge = seen.find(0, edge)
    return np.array(edges, np.int64), np.array(starts, np.int64)


def _corners(
    intervals: Intervals, edge_y: np.ndarray, ring_edges: np.ndarray, ring_starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y and starts of the corners, and the rings' lengths, as `Outlines` has them."""
    following = after(ring_starts)
    y = edge_y[ring_edges]
    below = ring_edges % 2
    begin = intervals.columns[ring_edges // 2] + below
    rise = np.abs(y[following] - y)
    turns = np.empty(2 * len(y), bool)  # both ends of each edge
    turns[1::2] = rise > 0
    turns[2 * following] = rise > 0
    corner_x = np.stack([begin, begin + 1 - 2 * below], axis=1).reshape(-1)[turns]
    corner_y = np.repeat(y, 2)[turns]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(turns)])[2 * ring_starts]
    lengths = np.add.reduceat(rise + 1, ring_starts[:-1])
    return corner_x, corner_y, starts, lengths


def after(starts: np.ndarray) -> np.ndarray:
    """For each place of rings that lie one after the other the place of what follows in its ring."""
    following = np.arange(1, int(starts[-1]) + 1)
    following[starts[1:] - 1] = starts[:-1]
    return following


def _outer(ring_of: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """For each ring the one around the same piece. Rings above and below the same interval bound the same piece."""
    outer = np.arange(len(areas))
    if (areas > 0).all():
        return outer
    above, below = ring_of[0::2], ring_of[1::2]
    pairs = np.unique((above * len(areas) + below)[above != below])
    piece = outer.tolist()

    def root(ring: int) -> int:
        while piece[ring] != ring:
            piece[ring] = ring = piece[piece[ring]]
        return ring

    for pair in pairs.tolist():
        one, other = divmod(pair, len(areas))
        piece[root(one)] = root(other)
    roots = np.array([root(ring) for ring in range(len(areas))])
    around = np.full(len(areas), -1)
    around[roots[areas > 0]] = outer[areas > 0]
    return around[roots]
