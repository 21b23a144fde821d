"""A large image in overlapping tiles, and the objects that their borders cut, joined again.

Two detections of one category in tiles that overlap are one object where their masks agree inside the overlap, which
both tiles see whole (IoU of at least SAME). A piece of an object that its tile cut off, which lies inside the overlap
and which a better detection of the other tile covers, is left out. Masks are joined as intervals of the image's
column-major run lengths: nothing of the image's size is ever made but the pixels themselves.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from maskx_answer import Detections
from maskx_errors import IMAGE_TOO_LARGE, MaskxError
from maskx_masks import column_intervals
from maskx_parameters import Tiling

SAME = 0.5
"""IoU inside the overlap from which two detections are one object."""

COVERED = 0.7
"""Share of a piece inside the overlap that another detection covers, from which it is taken for a part of that one."""

_AT_BORDER = 2.0
"""Pixels between a box and the border of its tile within which the border is taken to have cut it."""


class Tile(NamedTuple):
    """Where a tile lies, in pixels of the image, with exclusive ends."""

    top: int
    left: int
    bottom: int
    right: int


def tiles_of(height: int, width: int, tiling: Tiling, *, most: int) -> list[Tile]:
    """The tiles of an image, row by row, spread evenly; an image that is no larger than a tile is one.

    Raises MaskxError where there would be more than `most`.
    """
    rows, columns = _count(height, tiling), _count(width, tiling)
    if rows * columns > most:
        raise MaskxError(
            IMAGE_TOO_LARGE,
            f"tiles of {tiling.size} pixels that overlap by {tiling.overlap} make {rows * columns} of an image of "
            f"{width} x {height}; at most {most} are allowed: ask for larger tiles or a smaller overlap",
        )
    spans = itertools.product(_spans(height, rows, tiling.size), _spans(width, columns, tiling.size))
    return [Tile(top, left, bottom, right) for (top, bottom), (left, right) in spans]


def _count(side: int, tiling: Tiling) -> int:
    return max(-(-(side - tiling.overlap) // (tiling.size - tiling.overlap)), 1)


def _spans(side: int, count: int, size: int) -> list[tuple[int, int]]:
    if count == 1:
        return [(0, side)]
    starts = [round(i * (side - size) / (count - 1)) for i in range(count)]
    return [(start, start + size) for start in starts]


def joined(
    found: Sequence[Detections], tiles: Sequence[Tile], *, height: int, width: int, most: int
) -> Detections:
    """The detections of the whole image from those of its tiles: at most `most`, the best first.

    Args:
        found: of each tile, in pixels of the tile.
        tiles: where they lie in the image of `height` x `width`.
    """
    if len(tiles) == 1:
        return found[0]
    objects = [_Objects(one, tile, height) for one, tile in zip(found, tiles, strict=True)]
    first = np.cumsum([0, *(len(one.scores) for one in found)])
    groups = _Groups(int(first[-1]))
    left_out: set[int] = set()
    for i, j in _neighbours(tiles):
        zone = _overlap(tiles[i], tiles[j])
        for a, b, verdict in _pairs(objects[i], objects[j], zone):
            numbers = int(first[i]) + a, int(first[j]) + b
            if verdict == "same":
                groups.join(*numbers)
            else:
                left_out.add(numbers[0] if verdict == "first" else numbers[1])
    return _merged(objects, groups.members(), left_out, height=height, width=width, most=most)


class _Objects:
    """The detections of one tile in pixels of the image; masks as intervals [start, end) of column-major positions."""

    def __init__(self, found: Detections, tile: Tile, height: int) -> None:
        self.found, self.tile, self.height = found, tile, height
        offset = np.array([tile.left, tile.top, tile.left, tile.top], np.float32)
        self.boxes = found.boxes + offset
        self.has_masks = len(found.rle_counts) > 0
        intervals = column_intervals(found.rle_counts, found.rle_offsets, height=tile.bottom - tile.top)
        self.starts = intervals.starts
        self.columns = intervals.columns + tile.left
        self.tops, self.bottoms = intervals.tops + tile.top, intervals.bottoms + tile.top

    def inside(self, zone: Tile) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each mask the part in `zone`: starts and ends of its intervals, ascending."""
        if not self.has_masks:
            return [_of_box(box, zone, self.height) for box in self.boxes]
        tops, bottoms = np.maximum(self.tops, zone.top), np.minimum(self.bottoms, zone.bottom)
        there = (tops < bottoms) & (self.columns >= zone.left) & (self.columns < zone.right)
        base = self.columns * self.height
        parts = []
        for d in range(len(self.boxes)):
            of_mask = slice(self.starts[d], self.starts[d + 1])
            kept = there[of_mask]
            at = base[of_mask][kept]
            parts.append((at + tops[of_mask][kept], at + bottoms[of_mask][kept]))
        return parts

    def positions(self, d: int) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends of mask `d` in the image, ascending."""
        of_mask = slice(self.starts[d], self.starts[d + 1])
        base = self.columns[of_mask] * self.height
        return base + self.tops[of_mask], base + self.bottoms[of_mask]

    def is_cut(self, d: int, zone: Tile) -> bool:
        """Whether a border of the tile that lies in `zone` touches box `d`, and the box has no more than a tenth of its
        area outside the zone."""
        x0, y0, x1, y1 = self.boxes[d]
        tile = self.tile
        touched = (
            (tile.left >= zone.left and x0 <= tile.left + _AT_BORDER and tile.left > 0)
            or (tile.top >= zone.top and y0 <= tile.top + _AT_BORDER and tile.top > 0)
            or (tile.right <= zone.right and x1 >= tile.right - _AT_BORDER)
            or (tile.bottom <= zone.bottom and y1 >= tile.bottom - _AT_BORDER)
        )
        within = max(min(x1, zone.right) - max(x0, zone.left), 0) * max(
            min(y1, zone.bottom) - max(y0, zone.top), 0
        )
        return bool(touched and within >= 0.9 * (x1 - x0) * (y1 - y0))


def _of_box(box: np.ndarray, zone: Tile, height: int) -> tuple[np.ndarray, np.ndarray]:
    """A box in place of a mask that was not asked for."""
    left, right = max(int(box[0]), zone.left), min(int(np.ceil(box[2])), zone.right)
    top, bottom = max(int(box[1]), zone.top), min(int(np.ceil(box[3])), zone.bottom)
    columns = np.arange(left, right if top < bottom else left, dtype=np.int64)
    return columns * height + top, columns * height + bottom


def _neighbours(tiles: Sequence[Tile]) -> Iterator[tuple[int, int]]:
    """Pairs of tiles that overlap."""
    for i, j in itertools.combinations(range(len(tiles)), 2):
        zone = _overlap(tiles[i], tiles[j])
        if zone.top < zone.bottom and zone.left < zone.right:
            yield i, j


def _overlap(one: Tile, other: Tile) -> Tile:
    return Tile(*map(max, one[:2], other[:2]), *map(min, one[2:], other[2:]))


def _pairs(one: _Objects, other: _Objects, zone: Tile) -> Iterator[tuple[int, int, str]]:
    """Detections of two tiles that belong together: "same", or which of them ("first", "second") is but a piece."""
    parts, others = one.inside(zone), other.inside(zone)
    areas, their_areas = [_area(part) for part in parts], [_area(part) for part in others]
    for a, b in np.argwhere(_boxes_meet(one.boxes, other.boxes)).tolist():
        if not (areas[a] and their_areas[b]):
            continue
        both = _intersection(parts[a], others[b])
        alike = both >= SAME * (areas[a] + their_areas[b] - both)
        if alike and one.found.labels[a] == other.found.labels[b]:
            yield a, b, "same"
        elif one.found.scores[a] <= other.found.scores[b]:
            if one.is_cut(a, zone) and both >= COVERED * areas[a]:
                yield a, b, "first"
        elif other.is_cut(b, zone) and both >= COVERED * their_areas[b]:
            yield a, b, "second"


def _boxes_meet(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool [A, B]: whether two boxes overlap."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    meet: np.ndarray = (low < high).all(axis=2)
    return meet


def _area(part: tuple[np.ndarray, np.ndarray]) -> int:
    return int((part[1] - part[0]).sum())


def _intersection(part: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> int:
    """Positions in both of two lists of intervals, each ascending and apart."""
    starts, ends = other
    lengths = np.cumsum(ends - starts)
    at = np.stack([starts, ends], axis=1).reshape(-1)
    before = np.stack([lengths - (ends - starts), lengths], axis=1).reshape(-1)
    return round(float((np.interp(part[1], at, before) - np.interp(part[0], at, before)).sum()))


class _Groups:
    """Numbers 0..count-1, joined step by step."""

    def __init__(self, count: int) -> None:
        self._root = list(range(count))

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self._of(one), self._of(other)))
        self._root[second] = first

    def members(self) -> list[list[int]]:
        """The groups, each ascending, by their first."""
        groups: dict[int, list[int]] = {}
        for number in range(len(self._root)):
            groups.setdefault(self._of(number), []).append(number)
        return list(groups.values())

    def _of(self, number: int) -> int:
        while self._root[number] != number:
            self._root[number] = self._root[self._root[number]]
            number = self._root[number]
        return number


def _merged(
    objects: Sequence[_Objects],
    groups: Sequence[Sequence[int]],
    left_out: set[int],
    *,
    height: int,
    width: int,
    most: int,
) -> Detections:
    """One detection for each group; its score, label and keypoints are those of its best member."""
    places = [(one, d) for one in objects for d in range(len(one.boxes))]
    kept = [kept for group in groups if (kept := [places[n] for n in group if n not in left_out])]
    best = [max(group, key=lambda place: float(place[0].found.scores[place[1]])) for group in kept]
    scores = np.array([one.found.scores[d] for one, d in best], np.float32)
    order = np.argsort(-scores, kind="stable")[:most].tolist()
    masks = [
        _counts(kept[k], height * width) if kept[k][0][0].has_masks else np.zeros(0, np.int64) for k in order
    ]
    points = [_keypoints(*best[k]) for k in order]
    with_points = any(one.found.keypoints is not None for one in objects)
    boxes = [_box_around([one.boxes[d] for one, d in kept[k]]) for k in order]
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=scores[order],
        labels=np.array([best[k][0].found.labels[best[k][1]] for k in order], np.int64),
        rle_counts=np.concatenate([np.zeros(0, np.int64), *masks]),
        rle_offsets=np.cumsum([0, *map(len, masks)]).astype(np.int64),
        keypoints=np.array(points, np.float32) if with_points and points else objects[0].found.keypoints,
    )


def _box_around(boxes: Sequence[np.ndarray]) -> np.ndarray:
    stacked = np.stack(boxes)
    return np.concatenate([stacked[:, :2].min(axis=0), stacked[:, 2:].max(axis=0)])


def _counts(members: Sequence[tuple[_Objects, int]], pixels: int) -> np.ndarray:
    """Run lengths of the union of several masks over an image of so many pixels."""
    parts = [one.positions(d) for one, d in members]
    starts = np.concatenate([start for start, _ in parts])
    ends = np.concatenate([end for _, end in parts])
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    fresh = np.concatenate([[True], starts[1:] > reach[:-1]])[: len(starts)]
    last = np.concatenate([fresh[1:], [True]])[: len(starts)]
    borders = np.stack([starts[fresh], reach[last]], axis=1).reshape(-1)
    return np.diff(borders, prepend=0, append=pixels)


def _keypoints(one: _Objects, d: int) -> np.ndarray:
    """Of one detection, in pixels of the image; empty where the model has none."""
    if one.found.keypoints is None:
        return np.zeros((0, 3), np.float32)
    points: np.ndarray = one.found.keypoints[d] + np.array([one.tile.left, one.tile.top, 0], np.float32)
    return points
