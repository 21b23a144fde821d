"""Run lengths -> polygons `[[x, y, x, y, ...], ...]` of every mask, in pixels of the upright image.

A polygon is one piece of the mask, and closed: its last point is followed by the first. x and y grow to the right and
down; whole numbers are edges of pixels, so that a single pixel in the corner is [0, 0, 1, 0, 1, 1, 0, 1]. A hole is
joined to its piece by a cut, to the hole and back the same way, which even-odd and nonzero filling and COCO's
rasteriser (`pycocotools.mask.frPyObjects`) all leave open. A mask without a pixel has a polygon without area,
NO_PIXELS, since `pycocotools` does not read an empty list.

Outlines are simplified by at most MAX_TOLERANCE, 1.2 pixels, and by less where a mask or a ring of it is not WIDE, by
its area / its outline's length: down to LEAST_TOLERANCE, 0.7 pixels, under which nothing can be left out of a
staircase. What is NARROW has an exact polygon: a disc of up to 17 pixels across, or a line, however long. Ramer,
Douglas and Peucker's rule chooses which corners remain; then each side becomes the line that fits the pixel edges best
(least squares) and corners move to where their sides meet, rounded to tenths of a pixel. A side so lies in the middle
of the stairs and not along their tips: at the same number of points the mask's area is kept, and errors are about a
half. Simplified outlines may cross themselves where a mask is very narrow.

Before that, outlines follow the edges of pixels, those of all masks of an image at once. Every interval of a column
(`maskx_masks.Intervals`) has an edge above and one below. On the line between two columns the ends of these edges, from
top to bottom, are joined two by two: that is where one column is inside the mask and the other is not. So each edge has
one before and one after it, and all lie in rings, clockwise around what is inside (y points down) and counterclockwise
around holes. Pixels that touch at a corner only belong together, as for OpenCV.
"""

from dataclasses import dataclass

import numpy as np

from maskx_masks import Intervals, column_intervals

MAX_TOLERANCE = 1.2
"""Pixels that a simplified outline may lie from a corner that was left out, before sides are fitted."""

LEAST_TOLERANCE = 0.7
"""Just under half a pixel's diagonal, by which the corners of single steps are off their line: less changes nothing."""

NARROW, WIDE = 3.5, 10.0
"""Area / outline up to which a mask is not simplified, and from which it is by MAX_TOLERANCE; between them the
tolerance grows evenly. A disc has a radius / 2.5, a stripe half its width."""

_ENDS_OF_CUTS = 16
"""Points of a hole that a cut may lead to: so that two outlines of thousands of points cost no gigabytes."""

Polygon = list[float]

NO_PIXELS: list[Polygon] = [[0, 0, 0, 0, 0, 0]]

_FARTHEST = 2.0
"""Pixels that a corner may move to where its sides meet; farther, it moves to the middle of its feet on both."""


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


def polygons(counts: np.ndarray, offsets: np.ndarray, *, height: int, width: int) -> list[list[Polygon]]:
    """The polygons of each of D masks; NO_PIXELS for a mask without a pixel.

    Args:
        counts, offsets: run lengths as `maskx_answer.Detections` has them.
        height, width: of the image, in pixels.
    """
    of_masks: list[list[Polygon]] = [[] for _ in range(len(offsets) - 1)]
    rings = outlines(column_intervals(counts, offsets, height=height))
    if len(rings.masks) == 0:
        return [NO_PIXELS for _ in of_masks]
    tenths, starts = _simplified(rings, _tolerances(rings), height=height, width=width)
    bounds = starts.tolist()
    holes: dict[int, list[int]] = {}
    for ring in np.flatnonzero(rings.areas < 0).tolist():
        holes.setdefault(int(rings.outer[ring]), []).append(ring)
    for ring, (mask, area) in enumerate(zip(rings.masks.tolist(), rings.areas.tolist(), strict=True)):
        if area > 0:
            outline = tenths[bounds[ring] : bounds[ring + 1]]
            for hole in holes.get(ring, []):
                outline = _with_hole(outline, tenths[bounds[hole] : bounds[hole + 1]])
            numbers = outline.reshape(-1).tolist()
            of_masks[mask].append([n / 10 if n % 10 else n // 10 for n in numbers])
    return [one or NO_PIXELS for one in of_masks]


def _tolerances(rings: Outlines) -> np.ndarray:
    """Pixels that each ring may be simplified by, float64 [R]; 0: not at all."""
    masks = int(rings.masks[-1]) + 1
    of_mask = np.bincount(rings.masks, rings.areas, masks) / np.maximum(
        np.bincount(rings.masks, rings.lengths, masks), 1
    )
    width = np.minimum(of_mask[rings.masks], np.abs(rings.areas) / rings.lengths)
    share = np.clip((width - NARROW) / (WIDE - NARROW), 0.0, 1.0)
    tolerances = LEAST_TOLERANCE + share * (MAX_TOLERANCE - LEAST_TOLERANCE)
    return np.where(width < NARROW, 0.0, tolerances)


def _simplified(
    rings: Outlines, tolerances: np.ndarray, *, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points in tenths of a pixel, int64 [K, 2], and where each ring's begin, int64 [R + 1]."""
    sizes = np.diff(rings.starts)
    kept = np.repeat(tolerances == 0, sizes)
    if not kept.all():
        kept |= _corners_to_keep(rings, tolerances)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])[rings.starts]
    x, y = rings.x[kept].astype(np.float64), rings.y[kept].astype(np.float64)
    moved = np.repeat(tolerances > 0, np.diff(starts))
    if moved.any():
        fitted_x, fitted_y = _fitted(rings, kept, starts)
        x, y = np.where(moved, fitted_x, x), np.where(moved, fitted_y, y)
    tenths = np.rint(np.stack([np.clip(x, 0, width), np.clip(y, 0, height)], axis=1) * 10)
    return tenths.astype(np.int64), starts


def _corners_to_keep(rings: Outlines, tolerances: np.ndarray) -> np.ndarray:
    """Ramer, Douglas and Peucker's rule on all rings whose tolerance is not 0: bool [P].

    A ring's first corner stays. Of the corners between two that stay the farthest from the line between them stays if
    it is farther than the tolerance, and so on; here all such stretches of all rings take each step together.
    """
    count = len(rings.x)
    simplified = np.flatnonzero(tolerances > 0)
    # Each ring is followed by its first corner once more, where the last stretch ends.
    ring = np.repeat(np.arange(len(tolerances)), np.diff(rings.starts))
    places = np.arange(count) + ring
    x, y = np.empty(count + len(tolerances)), np.empty(count + len(tolerances))
    firsts = rings.starts[:-1] + np.arange(len(tolerances))
    lasts = rings.starts[1:] + np.arange(len(tolerances))
    x[places], y[places] = rings.x, rings.y
    x[lasts], y[lasts] = rings.x[rings.starts[:-1]], rings.y[rings.starts[:-1]]
    keep = np.zeros(len(x), bool)
    begin, end, limit = firsts[simplified], lasts[simplified], tolerances[simplified] ** 2
    keep[begin] = True
    while len(begin) > 0:
        farthest, distance = _farthest(x, y, begin, end)
        split = distance > limit
        keep[farthest[split]] = True
        begin, end = (
            np.concatenate([begin[split], farthest[split]]),
            np.concatenate([farthest[split], end[split]]),
        )
        limit = np.tile(limit[split], 2)
        between = end - begin > 1
        begin, end, limit = begin[between], end[between], limit[between]
    return keep[places]


def _farthest(
    x: np.ndarray, y: np.ndarray, begin: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first of the points farthest from the line between each `begin` and `end`; and its distance squared.

    There is at least one point between them.
    """
    sizes = end - begin - 1
    starts = np.cumsum(sizes) - sizes
    at = np.arange(int(sizes.sum())) + np.repeat(begin + 1 - starts, sizes)
    along_x, along_y = x[end] - x[begin], y[end] - y[begin]
    square = np.maximum(along_x * along_x + along_y * along_y, 1e-9)
    dx, dy = x[at] - np.repeat(x[begin], sizes), y[at] - np.repeat(y[begin], sizes)
    along_x, along_y = np.repeat(along_x, sizes), np.repeat(along_y, sizes)
    share = (dx * along_x + dy * along_y) / np.repeat(square, sizes)
    np.clip(share, 0.0, 1.0, out=share)  # of the line, no farther than its ends
    dx -= share * along_x
    dy -= share * along_y
    distances = dx * dx + dy * dy
    most = np.maximum.reduceat(distances, starts)
    hits = np.flatnonzero(distances == np.repeat(most, sizes))
    return at[hits[np.searchsorted(hits, starts)]], most


def _fitted(rings: Outlines, kept: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kept corners moved to where the lines meet that fit the pixel edges before and after them: x, y, float64 [K].

    Args:
        kept: bool [P], the first of each ring among them. starts: int64 [R + 1], of the rings among those kept.
    """
    following = after(rings.starts)
    at = np.flatnonzero(kept)
    x, y = rings.x[at].astype(np.float64), rings.y[at].astype(np.float64)
    side = np.cumsum(kept) - 1
    step_x, step_y = rings.x[following] - rings.x, rings.y[following] - rings.y
    weight = np.abs(step_x) + np.abs(step_y)
    middle_x, middle_y = rings.x + step_x / 2 - x[side], rings.y + step_y / 2 - y[side]

    def mean(values: np.ndarray) -> np.ndarray:
        means: np.ndarray = np.add.reduceat(values * weight, at) / np.add.reduceat(weight, at)
        return means

    center_x, center_y = mean(middle_x), mean(middle_y)
    xx = mean(middle_x * middle_x + step_x * step_x / 12) - center_x * center_x
    yy = mean(middle_y * middle_y + step_y * step_y / 12) - center_y * center_y
    xy = mean(middle_x * middle_y) - center_x * center_y
    angle = np.arctan2(2 * xy, xx - yy) / 2
    # Lines as normal . point = distance, from the kept corner at their beginning; those of the sides before, too.
    normal_x, normal_y = -np.sin(angle), np.cos(angle)
    distance = normal_x * center_x + normal_y * center_y
    before = np.empty(len(at), np.int64)
    before[after(starts)] = np.arange(len(at))
    other_x, other_y = normal_x[before], normal_y[before]
    other = distance[before] + other_x * (x[before] - x) + other_y * (y[before] - y)
    sine = other_x * normal_y - other_y * normal_x
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        move_x = (other * normal_y - distance * other_y) / sine
        move_y = (other_x * distance - normal_x * other) / sine
        near = move_x * move_x + move_y * move_y <= _FARTHEST * _FARTHEST
    feet_x = (distance * normal_x + other * other_x) / 2
    feet_y = (distance * normal_y + other * other_y) / 2
    return x + np.where(near, move_x, feet_x), y + np.where(near, move_y, feet_y)


def _with_hole(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The outline with a hole, int64 [K, 2] each, by a cut between points of them that are near each other."""
    step = -(-len(hole) // _ENDS_OF_CUTS)
    apart = outline[:, None, :] - hole[None, ::step, :]
    place, nearest = divmod(int((apart * apart).sum(axis=2).argmin()), apart.shape[1])
    start = nearest * step
    there = np.concatenate([outline[: place + 1], hole[start:], hole[: start + 1]])
    return np.concatenate([there, outline[place:]])


def outlines(intervals: Intervals) -> Outlines:
    """The outlines of all masks; a mask without a pixel has no ring."""
    count = len(intervals.tops)
    if count == 0:
        empty, starts = np.zeros(0, np.int64), np.zeros(1, np.int64)
        return Outlines(x=empty, y=empty, starts=starts, masks=empty, outer=empty, areas=empty, lengths=empty)
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
