"""Detections drawn on their image: box, mask, name and score; transferred masks look different.

A mask of a class that had masks in training is a plain tint within a solid box. A mask that the weight
transfer function made, for a class that never had one (`mask_supervised` false), is hatched within a dashed
box, and its name carries a star.

Imports nothing of the project, only Pillow and NumPy, so that the server, the client and training draw with the same
code. No mask is drawn larger than the window that holds it.
"""

import base64
import colorsys
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

TINT = 0.45
"""Share of the class's colour in a pixel of its mask."""

KEYPOINT_SHOWN = 0.1
"""Least score of a keypoint that is drawn."""

LEGEND = "* hatched, dashed: no mask of this class was seen in training"
MIXED_LEGEND = "* hatched, dashed: few or no true masks of this class were seen in training"
"""Where such a class had some, or was taught masks that no human made (`mask_source`)."""


@dataclass(frozen=True)
class Window:
    """The part of an image that a mask lies in: `pixels` bool [h, w], its first at (`left`, `top`)."""

    left: int
    top: int
    pixels: np.ndarray


def draw_detections(
    image: Image.Image,
    detections: Sequence[Mapping[str, Any]],
    *,
    min_side: int = 640,
    legend: bool = False,
    size: tuple[int, int] | None = None,
    lines: Sequence[tuple[int, int]] = (),
) -> Image.Image:
    """A new RGB image with the detections drawn over `image`, which stays as it is.

    Args:
        image: the upright image that the detections are about.
        detections: in the form of an answer: `category_id`, `category`, `bbox` [x, y, width, height] in
            pixels, and where known `score`, `mask_supervised` (taken as true where absent), `segmentation` (as
            `mask_window` takes it) and `keypoints`, of which those of score `KEYPOINT_SHOWN` and more are drawn.
        min_side: an image whose longer side is shorter is enlarged by a whole factor to at least this many
            pixels, so that names can be read; 0 never enlarges.
        legend: adds a line that explains the marks, where a transferred mask is drawn.
        size: height and width of the image that the detections are about, where `image` is that one scaled; None
            where it is not.
        lines: pairs of keypoints, by their numbers, to join.

    Raises:
        ValueError: what is not a segmentation, or does not fit the image.
    """
    height, width = size or (image.height, image.width)
    factor = max(1, -(-min_side // max(image.size)))
    pixels = np.array(image.convert("RGB"))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    # the largest first, so that no small object disappears under a large one
    order = sorted(detections, key=lambda one: -float(one["bbox"][2]) * float(one["bbox"][3]))
    for one in order:
        window = mask_window(one.get("segmentation"), height=height, width=width)
        if window is not None:
            window = _scaled(window, (height, width), (pixels.shape[0], pixels.shape[1]))
            _tint(pixels, window, color_of(int(one["category_id"])), hatched=not _supervised(one))
    drawn = Image.fromarray(pixels)
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(size=max(12, round(max(drawn.size) / 50)))
    line = max(2, round(max(drawn.size) / 400))
    scale = drawn.width / width, drawn.height / height
    for one in order:
        color, corners = color_of(int(one["category_id"])), _corners(one, scale, drawn.size)
        _box(pen, corners, color, line, dashed=not _supervised(one))
    for one in order:
        _keypoints(pen, one.get("keypoints") or (), scale, color_of(int(one["category_id"])), line, lines)
    taken: list[tuple[float, float, float, float]] = []
    for one in reversed(order):
        _label(pen, one, _corners(one, scale, drawn.size), font, drawn.size, taken)
    marked = [one.get("mask_source", "boxes") for one in detections if not _supervised(one)]
    if legend and marked:
        _text(pen, (4, drawn.height - 6), legend_of(marked), font, (255, 255, 255), anchor="ls")
    return drawn


def color_of(category_id: int) -> Color:
    """A bright colour, the same always for one category and far apart for ids that follow each other."""
    hue = (category_id * 0.618_033_988_75) % 1.0  # the golden ratio spreads any run of numbers evenly
    value = 1.0 if category_id % 2 else 0.85
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def mask_window(segmentation: Any, *, height: int, width: int) -> Window | None:
    """The window of a segmentation; None where there is no segmentation or it has no pixel.

    Args:
        segmentation: None or nothing; run lengths `{"size": [h, w], "counts": COCO's text or a list}`; polygons
            `[[x, y, x, y, ...], ...]`; a PNG `{"png": "<base64>", "bbox": [x, y, w, h]}`.
        height, width: of the image that it is about, in pixels.

    Raises:
        ValueError: what is not one of these, or does not fit the image.
    """
    if not segmentation:
        return None
    if not isinstance(segmentation, Mapping):
        return _polygon_window(segmentation, height, width)
    if "png" in segmentation:
        return _png_window(segmentation, height, width)
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(
            f"a segmentation of size {list(segmentation['size'])} does not fit an image of height {height} "
            f"and width {width}; is the image another one, or not turned upright?"
        )
    return _run_window(run_lengths(segmentation["counts"]), height, width)


def run_lengths(counts: str | bytes | Sequence[int]) -> np.ndarray:
    """Run lengths, int64, of COCO's compressed text or of a list; the text's form is told in maskx_masks.

    Raises ValueError: text that is not of this form.
    """
    if not isinstance(counts, str | bytes):
        return np.asarray(counts, dtype=np.int64)
    text = counts.encode() if isinstance(counts, str) else counts
    groups = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if groups.size == 0:
        return groups
    last = np.flatnonzero(groups & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if (
        groups.min() < 0
        or groups.max() > 63
        or last.size == 0
        or last[-1] != groups.size - 1
        or lengths.max() > 12
    ):
        raise ValueError(f"a segmentation whose counts are no compressed run lengths: {text[:40]!r}")
    place = np.arange(groups.size) - np.repeat(first, lengths)
    numbers = np.add.reduceat((groups & 31) << 5 * place, first)
    numbers -= np.where(groups[last] & 16, np.int64(1) << 5 * lengths, 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _run_window(runs: np.ndarray, height: int, width: int) -> Window | None:
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise ValueError(
            f"a segmentation of {int(runs.sum())} pixels does not fit an image of height {height} and width {width}"
        )
    ends = np.cumsum(runs)
    inside = (np.arange(len(runs)) % 2 == 1) & (runs > 0)
    if not inside.any():
        return None
    left = int((ends - runs)[inside][0]) // height
    right = int(ends[inside][-1] - 1) // height + 1
    lengths = np.diff(np.clip(ends, left * height, right * height), prepend=left * height)
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, lengths).reshape(right - left, height)
    rows = np.flatnonzero(columns.any(axis=0))
    return Window(left, int(rows[0]), columns[:, rows[0] : rows[-1] + 1].T)


def _polygon_window(polygons: Sequence[Sequence[float]], height: int, width: int) -> Window | None:
    """Pixels whose centre lies within any polygon, by the even-odd rule; what lies outside the image is left out."""
    drawable = [np.asarray(one, np.float64) for one in polygons if len(one) >= 6]
    outlines = [one[: len(one) // 2 * 2].reshape(-1, 2) for one in drawable]
    if not outlines:
        return None
    points = np.concatenate(outlines)
    if not np.isfinite(points).all():
        raise ValueError("a segmentation with a polygon whose coordinates are not all finite numbers")
    left, top = (np.floor(points.min(axis=0)).clip(0, (width, height))).astype(np.int64).tolist()
    right, bottom = (np.ceil(points.max(axis=0)).clip(0, (width, height))).astype(np.int64).tolist()
    if left == right or top == bottom:
        return None
    pixels = np.zeros((right - left, bottom - top), bool)
    for outline in outlines:
        pixels |= _filled(outline - (left, top), right - left, bottom - top)
    return Window(left, top, pixels.T)


def _filled(outline: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """bool [columns, rows]: where a column's centre line crosses the outline, inside and outside change."""
    begin, end = outline, np.roll(outline, -1, axis=0)
    swap = (begin[:, 0] > end[:, 0])[:, None]
    begin, end = np.where(swap, end, begin), np.where(swap, begin, end)
    first = np.ceil(begin[:, 0] - 0.5).clip(0, columns).astype(np.int64)
    count = np.ceil(end[:, 0] - 0.5).clip(0, columns).astype(np.int64) - first
    column = np.arange(int(count.sum())) + np.repeat(first - (np.cumsum(count) - count), count)
    slope = (end[:, 1] - begin[:, 1]) / np.where(count > 0, end[:, 0] - begin[:, 0], 1.0)
    run = column + 0.5 - np.repeat(begin[:, 0], count)
    y = np.repeat(begin[:, 1], count) + run * np.repeat(slope, count)
    row = np.ceil(y - 0.5).clip(0, rows).astype(np.int64)
    changes = np.bincount(column * (rows + 1) + row, minlength=columns * (rows + 1))
    changes = changes.reshape(columns, rows + 1)
    inside: np.ndarray = np.cumsum(changes[:, :rows], axis=1) % 2 == 1
    return inside


def _png_window(segmentation: Mapping[str, Any], height: int, width: int) -> Window | None:
    with Image.open(io.BytesIO(base64.b64decode(segmentation["png"]))) as picture:
        pixels = np.asarray(picture.convert("L")) > 0
    left, top, columns, rows = segmentation["bbox"]
    inside = 0 <= left <= width - columns and 0 <= top <= height - rows
    if pixels.shape != (rows, columns) or not inside:
        raise ValueError(
            f"a PNG of {pixels.shape[1]} x {pixels.shape[0]} pixels at {list(segmentation['bbox'])} does not fit an "
            f"image of height {height} and width {width}"
        )
    return Window(left, top, pixels) if pixels.any() else None


def _scaled(window: Window, size: tuple[int, int], drawn: tuple[int, int]) -> Window:
    """The window in an image of `size` (height, width) as one in the drawn image: each pixel as its centre falls."""
    if size == drawn:
        return Window(window.left, window.top, np.ascontiguousarray(window.pixels))
    firsts, places = [], []
    for first, count, side, new in zip(
        (window.top, window.left), window.pixels.shape, size, drawn, strict=True
    ):
        begin, end = (-((side - 2 * at * new) // (2 * side)) for at in (first, first + count))
        firsts.append(begin)
        places.append((2 * np.arange(begin, end) + 1) * side // (2 * new) - first)
    return Window(firsts[1], firsts[0], window.pixels[np.ix_(*places)])


def legend_of(sources: Iterable[str]) -> str:
    """What explains the marks where classes of these `mask_source` are drawn."""
    return LEGEND if {"masks", "boxes"}.issuperset(sources) else MIXED_LEGEND


def _supervised(detection: Mapping[str, Any]) -> bool:
    return bool(detection.get("mask_supervised", True))


def _tint(pixels: np.ndarray, window: Window, color: Color, *, hatched: bool) -> None:
    """Mixes the colour into the mask's pixels, in place; its outline is drawn full."""
    inside = window.pixels
    rows, columns = inside.shape
    part = pixels[window.top : window.top + rows, window.left : window.left + columns]
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    shares = [(core, TINT)]
    if hatched:
        period = max(6, max(pixels.shape) // 80)
        diagonal = np.arange(rows + columns) + window.top + window.left
        stripe = np.lib.stride_tricks.sliding_window_view(diagonal % period < period // 2, columns)[:rows]
        shares = [(core & stripe, 0.75), (core & ~stripe, 0.12)]
    under = np.arange(256)
    for plane, value in zip(np.moveaxis(part, 2, 0), color, strict=True):
        for where, share in shares:
            mixed = np.rint(under * (1.0 - share) + value * share).astype(np.uint8)
            np.copyto(plane, mixed[plane], where=where)
    np.copyto(part, np.array(color, np.uint8), where=(inside & ~core)[..., None])


def _corners(
    detection: Mapping[str, Any], scale: tuple[float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in pixels of the drawn image, inside it; `scale` is that of x and of y."""
    x, y, width, height = (float(value) * scale[i % 2] for i, value in enumerate(detection["bbox"]))
    right, bottom = min(x + width, size[0] - 1.0), min(y + height, size[1] - 1.0)
    return min(max(x, 0.0), right), min(max(y, 0.0), bottom), right, bottom


def _box(
    pen: ImageDraw.ImageDraw,
    corners: tuple[float, float, float, float],
    color: Color,
    line: int,
    dashed: bool,
) -> None:
    left, top, right, bottom = corners
    if not dashed:
        pen.rectangle(corners, outline=color, width=line)
        return
    dash = 4 * line
    for start in np.arange(left, right, 2 * dash):
        end = min(start + dash, right)
        pen.line([(start, top), (end, top)], fill=color, width=line)
        pen.line([(start, bottom), (end, bottom)], fill=color, width=line)
    for start in np.arange(top, bottom, 2 * dash):
        end = min(start + dash, bottom)
        pen.line([(left, start), (left, end)], fill=color, width=line)
        pen.line([(right, start), (right, end)], fill=color, width=line)


def _keypoints(
    pen: ImageDraw.ImageDraw,
    keypoints: Sequence[float],
    scale: tuple[float, float],
    color: Color,
    line: int,
    lines: Sequence[tuple[int, int]],
) -> None:
    """Dots with a dark rim, [x, y, score] of each one after the other, and the lines between those that are shown."""
    places = {
        k // 3: ((keypoints[k] + 0.5) * scale[0], (keypoints[k + 1] + 0.5) * scale[1])
        for k in range(0, len(keypoints), 3)
        if keypoints[k + 2] >= KEYPOINT_SHOWN
    }
    for one, other in lines:
        if one in places and other in places:
            pen.line([places[one], places[other]], fill=(255, 255, 255), width=line)
    for x, y in places.values():
        pen.ellipse((x - line - 1, y - line - 1, x + line + 1, y + line + 1), fill=color, outline=(0, 0, 0))


def label_text(detection: Mapping[str, Any]) -> str:
    """Name, a star where the mask is transferred, and the score where there is one."""
    text = str(detection.get("category", detection["category_id"]))
    if not _supervised(detection):
        text += "*"
    if "score" in detection:
        text += f" {float(detection['score']):.2f}"
    return text


def _label(
    pen: ImageDraw.ImageDraw,
    detection: Mapping[str, Any],
    corners: tuple[float, float, float, float],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> None:
    """The name at the box's top left corner, or where there is room: below, or inside; `taken` grows by it."""
    text = label_text(detection)
    _, _, width, height = pen.textbbox((0, 0), text, font=font)
    width, height = width + 4, height + 4
    left, top, _, bottom = corners
    x = min(max(left, 0.0), max(size[0] - width, 0.0))
    places = [top - height, bottom, top, bottom - height, top + height]
    inside = [min(max(y, 0.0), max(size[1] - height, 0.0)) for y in places]
    free = [y for y in inside if not any(_overlap((x, y, x + width, y + height), other) for other in taken)]
    y = free[0] if free else inside[0]
    taken.append((x, y, x + width, y + height))
    color = color_of(int(detection["category_id"]))
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 128
    pen.text((x + 2, y + 1), text, font=font, fill=(0, 0, 0) if dark else (255, 255, 255))


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _text(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    color: Color,
    *,
    anchor: str,
) -> None:
    """Text that can be read on any ground: a dark rim around light letters."""
    pen.text(at, text, font=font, fill=color, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))
