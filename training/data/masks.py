"""COCO segmentations kept small: polygons as numbers, RLE as run lengths; only windows are ever drawn.

A photograph of 300 objects would be hundreds of MB as full masks. Run lengths are column-major and begin with zeros.
"""

from array import array
from collections.abc import Sequence
from itertools import chain, pairwise
from math import ceil, floor, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from training.data.findings import FARTHEST, are_numbers

NO_MASK, POLYGONS, RUNS = 0, 1, 2
"""Kinds of packed segmentations."""

Extent = tuple[float, float, float, float]
"""Smallest and largest x and y that a mask reaches, XYXY."""


class SegmentationError(ValueError):
    """A segmentation that cannot be used: `kind` to be counted; the message says what was seen."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def pack_segmentation(segmentation: Any, height: int, width: int) -> tuple[int, bytes, Extent, int]:
    """(kind, packed bytes, extent, number of dropped polygons) of a COCO segmentation.

    Taken are a list of polygons [x0, y0, x1, y1, ...], an RLE with compressed `counts` (text or bytes) and
    one with `counts` as a list. Polygons of fewer than three points enclose nothing and are dropped. Raises
    SegmentationError for anything else and for what does not fit the image.
    """
    if isinstance(segmentation, dict):
        runs = _checked_runs(segmentation, height, width)
        return RUNS, runs.astype(np.uint32).tobytes(), _extent_of_runs(runs, height), 0
    if isinstance(segmentation, list):
        data, extent, dropped = _pack_polygons(segmentation, height, width)
        return POLYGONS, data, extent, dropped
    raise SegmentationError(
        "segmentation that cannot be read",
        f"a {type(segmentation).__name__}; expected a list of polygons or an RLE {{'size', 'counts'}}",
    )


def as_polygons(segmentation: Any) -> Any:
    """COCO's form of a segmentation that is meant as one: [x, y, ...], [[x, y], ...] or [[[x, y], ...], ...] for
    polygons, and [RLE] for an RLE; anything else as it is."""
    if not isinstance(segmentation, list) or not segmentation:
        return segmentation
    first = segmentation[0]
    if len(segmentation) == 1 and isinstance(first, dict):
        return first
    if type(first) in (int, float):
        return [segmentation]
    if isinstance(first, list) and all(map(_is_point, segmentation)) and len(segmentation) >= 3:
        return [[number for point in segmentation for number in point]]
    if isinstance(first, list) and first and isinstance(first[0], list):
        rings = [ring for ring in segmentation if isinstance(ring, list) and all(map(_is_point, ring))]
        if len(rings) == len(segmentation):
            return [[number for point in ring for number in point] for ring in rings]
    return segmentation


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and are_numbers(value)


def draw_crop(kind: int, data: bytes, window: Sequence[int], height: int, width: int) -> NDArray[np.uint8]:
    """The part of a packed mask inside `window` (pixels XYXY, exclusive ends): uint8 [h, w] of 0 and 1.

    Equal to pycocotools' full mask, cut. Needs time and memory for the window's columns, not for the image.
    """
    assert kind in (POLYGONS, RUNS), kind
    drawn = kind == POLYGONS
    runs = parse_counts(_merged(data, height, width)["counts"]) if drawn else np.frombuffer(data, np.uint32)
    x0, y0, x1, y1 = (int(v) for v in window)
    ends = np.clip(np.cumsum(runs, dtype=np.int64), x0 * height, x1 * height)
    lengths = np.diff(ends, prepend=x0 * height)
    values = np.resize(np.array([0, 1], np.uint8), len(lengths))
    columns = np.repeat(values, lengths).reshape(x1 - x0, height)
    return np.ascontiguousarray(columns[:, y0:y1].T)


def packed_extent(kind: int, data: bytes, height: int) -> Extent:
    """What a packed mask of an image of this height reaches."""
    assert kind in (POLYGONS, RUNS), kind
    if kind == RUNS:
        return _extent_of_runs(np.frombuffer(data, np.uint32).astype(np.int64), height)
    values = np.frombuffer(data, np.float64)
    numbers = values[1 + int(values[0]) :]
    xs, ys = numbers[0::2], numbers[1::2]
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def has_pixel(kind: int, data: bytes, extent: Extent, box: Extent, height: int, width: int) -> bool:
    """Whether a packed mask holds a pixel in the window of its box; a sliver between pixel centres holds none.

    Only slivers, and masks that leave the window, are drawn for it.
    """
    x0, y0, x1, y1 = floor(box[0]), floor(box[1]), ceil(box[2]), ceil(box[3])
    if extent[0] < x0 or extent[1] < y0 or extent[2] > x1 or extent[3] > y1:
        return bool(draw_crop(kind, data, (x0, y0, x1, y1), height, width).any())
    if kind == RUNS or min(extent[2] - extent[0], extent[3] - extent[1]) >= 2:
        return True
    return bool(mask_utils.area(encoded(kind, data, height, width)))


def encoded(kind: int, data: bytes, height: int, width: int) -> dict[str, Any]:
    """A packed mask as pycocotools has it: {"size": [height, width], "counts": compressed bytes}."""
    assert kind in (POLYGONS, RUNS), kind
    if kind == POLYGONS:
        return _merged(data, height, width)
    runs = {"size": [height, width], "counts": np.frombuffer(data, np.uint32).tolist()}
    return dict(mask_utils.frPyObjects(runs, height, width))


def parse_counts(text: str | bytes) -> NDArray[np.int64]:
    """Run lengths of COCO's compressed `counts`: 5 bits to a character, differences from the fourth run on.

    Parsed here because pycocotools trusts the text and reads past the end of a broken one.
    """
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise _bad_counts("characters that RLE does not know") from error
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        raise _bad_counts("no characters")
    if codes.min() < 0 or codes.max() > 63:
        raise _bad_counts("characters that RLE does not know")
    last = np.flatnonzero(codes & 0x20 == 0)  # each number ends at a character without the continuation bit
    if last.size == 0 or last[-1] != codes.size - 1:
        raise _bad_counts("an unfinished number at the end")
    first = np.concatenate([[0], last[:-1] + 1])
    digits = last - first + 1
    if digits.max() > 7:
        raise _bad_counts("a number of more than 35 bits")
    place = np.arange(codes.size) - np.repeat(first, digits)
    numbers = np.add.reduceat((codes & 0x1F) << (5 * place), first)
    numbers -= np.where(codes[last] & 0x10, np.int64(1) << (5 * digits), 0)  # the sign bit, extended
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _bad_counts(seen: str) -> SegmentationError:
    return SegmentationError("RLE that cannot be read", f"RLE counts with {seen}")


def _checked_runs(rle: dict[str, Any], height: int, width: int) -> NDArray[np.int64]:
    if "size" not in rle or "counts" not in rle:
        raise SegmentationError(
            "RLE that cannot be read", f"an RLE with keys {sorted(rle)}; expected size and counts"
        )
    size, counts = rle["size"], rle["counts"]
    if size != [height, width] and size != (height, width):
        raise SegmentationError(
            "RLE of another size than its image",
            f"RLE size {size}; expected [height, width] = [{height}, {width}]",
        )
    if isinstance(counts, (str, bytes)):
        runs = parse_counts(counts)
    else:
        most = height * width
        if not isinstance(counts, list) or not all(type(v) is int and 0 <= v <= most for v in counts):
            raise _bad_counts("something else than text or a list of whole numbers that the image can hold")
        runs = np.array(counts, dtype=np.int64)
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise SegmentationError(
            "RLE that does not add up",
            f"runs that sum to {int(runs.sum())}, smallest {int(runs.min(initial=0))}; "
            f"expected {height} x {width} = {height * width} and none below 0",
        )
    if not runs[1::2].any():
        raise SegmentationError("mask without a pixel", "an RLE of zeros only; expected at least one pixel")
    return runs


def _extent_of_runs(runs: NDArray[np.int64], height: int) -> Extent:
    ends = np.cumsum(runs)[1::2]
    ones = runs[1::2]
    ends, ones = ends[ones > 0], ones[ones > 0]
    starts = ends - ones
    x0, x1 = float(starts[0] // height), float((ends[-1] - 1) // height + 1)
    over_an_end = starts // height != (ends - 1) // height  # such a run holds top and bottom row
    if over_an_end.any():
        return x0, 0.0, x1, float(height)
    return x0, float((starts % height).min()), x1, float(((ends - 1) % height).max() + 1)


def _pack_polygons(polygons: list[Any], height: int, width: int) -> tuple[bytes, Extent, int]:
    """Bytes of one float64 array: number of polygons, their lengths, their coordinates."""
    kept: list[array[float]] = []
    for polygon in polygons:
        numbers = _places(polygon) if isinstance(polygon, list) else None
        if numbers is None:
            raise SegmentationError(
                "polygon that cannot be read", "a polygon that is no list of finite numbers"
            )
        if len(polygon) % 2:
            raise SegmentationError(
                "polygon of odd length", f"a polygon of {len(polygon)} numbers; expected x, y in pairs"
            )
        if len(polygon) >= 6:
            kept.append(numbers)
    if not kept:
        raise SegmentationError(
            "polygon of fewer than 3 points",
            f"{len(polygons)} polygons, each of fewer than 3 points; expected at least 3",
        )
    numbers = kept[0] if len(kept) == 1 else array("d", chain.from_iterable(kept))
    xs, ys = numbers[0::2], numbers[1::2]
    extent = (min(xs), min(ys), max(xs), max(ys))
    # a picture's size beyond the picture is a slip of units or of the image, and would make the drawing
    # needlessly long
    if not (
        extent[0] >= -width and extent[1] >= -height and extent[2] <= 2 * width and extent[3] <= 2 * height
    ):
        raise SegmentationError(
            "polygon far outside the image",
            f"x, y from {extent[:2]} to {extent[2:]}; the image is {width} x {height}",
        )
    head = array("d", [len(kept), *map(len, kept)])
    return head.tobytes() + numbers.tobytes(), extent, len(polygons) - len(kept)


def _places(polygon: list[Any]) -> "array[float] | None":
    """The coordinates of a polygon, None where one is no number or no place in a picture: `are_numbers`, quicker.

    A set has tens of millions of them, for which a loop in Python and NumPy's calls on few numbers take long.
    """
    if not set(map(type, polygon)) <= {int, float}:
        return None
    try:
        numbers = array("d", polygon)
    except OverflowError:
        return None
    if numbers and not (isfinite(sum(numbers)) and min(numbers) > -FARTHEST and max(numbers) < FARTHEST):
        return None
    return numbers


def _merged(data: bytes, height: int, width: int) -> dict[str, Any]:
    """The union of packed polygons, as pycocotools draws them."""
    values = np.frombuffer(data, np.float64)
    count = int(values[0])
    starts = np.cumsum([1 + count, *values[1 : 1 + count]]).astype(int)
    polygons = [values[a:b].tolist() for a, b in pairwise(starts)]
    return dict(mask_utils.merge(mask_utils.frPyObjects(polygons, height, width)))
