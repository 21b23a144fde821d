"""Detections drawn on their image: box, mask, name and score; transferred masks look different.

A mask of a class that had masks in training is a plain tint within a solid box. A mask that the weight
transfer function made, for a class that never had one (`mask_supervised` false), is hatched within a dashed
box, and its name carries a star.

Imports nothing of the project, so that training draws its sheets with the same code.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

Color = tuple[int, int, int]

TINT = 0.45
"""Share of the class's colour in a pixel of its mask."""

LEGEND = "* hatched, dashed: no mask of this class was seen in training"


def draw_detections(
    image: Image.Image,
    detections: Sequence[Mapping[str, Any]],
    *,
    min_side: int = 640,
    legend: bool = False,
) -> Image.Image:
    """A new RGB image with the detections drawn over `image`, which stays as it is.

    Args:
        image: the upright image that the detections are about.
        detections: in the form of an answer: `category_id`, `category`, `bbox` [x, y, width, height] in
            pixels of `image`, and where known `score`, `mask_supervised` (taken as true where absent) and
            `segmentation` (`{"size": [h, w], "counts": ...}`, compressed or not; polygons; None or absent).
        min_side: an image whose longer side is shorter is enlarged by a whole factor to at least this many
            pixels, so that names can be read; 0 never enlarges.
        legend: adds a line that explains the marks, where a transferred mask is drawn.

    Raises:
        ValueError: a segmentation of another size than the image.
    """
    factor = max(1, -(-min_side // max(image.size)))
    pixels = np.array(image.convert("RGB"))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    # the largest first, so that no small object disappears under a large one
    order = sorted(detections, key=lambda one: -float(one["bbox"][2]) * float(one["bbox"][3]))
    for one in order:
        mask = dense_mask(one.get("segmentation"), height=image.height, width=image.width)
        if mask is not None:
            mask = mask.repeat(factor, axis=0).repeat(factor, axis=1)
            _tint(pixels, mask, color_of(int(one["category_id"])), hatched=not _supervised(one))
    drawn = Image.fromarray(pixels)
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(size=max(12, round(max(drawn.size) / 50)))
    line = max(2, round(max(drawn.size) / 400))
    for one in order:
        _box(
            pen,
            _corners(one, factor, drawn.size),
            color_of(int(one["category_id"])),
            line,
            not _supervised(one),
        )
    taken: list[tuple[float, float, float, float]] = []
    for one in reversed(order):
        _label(pen, one, _corners(one, factor, drawn.size), font, drawn.size, taken)
    if legend and any(not _supervised(one) for one in detections):
        _text(pen, (4, drawn.height - 6), LEGEND, font, (255, 255, 255), anchor="ls")
    return drawn


def color_of(category_id: int) -> Color:
    """A bright colour, the same always for one category and far apart for ids that follow each other."""
    hue = (category_id * 0.618_033_988_75) % 1.0  # the golden ratio spreads any run of numbers evenly
    value = 1.0 if category_id % 2 else 0.85
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def dense_mask(segmentation: Any, *, height: int, width: int) -> np.ndarray | None:
    """The segmentation as a bool array [height, width]; None where there is none.

    Raises:
        ValueError: run lengths of an image of another size.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, Mapping):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(
                f"a segmentation of size {list(segmentation['size'])} does not fit an image of height {height} "
                f"and width {width}; is the image another one, or not turned upright?"
            )
        rle = segmentation
        if isinstance(rle["counts"], list):
            rle = coco_mask.frPyObjects(rle, height, width)
    else:
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    decoded: np.ndarray = coco_mask.decode(rle)
    return decoded.astype(bool)


def _supervised(detection: Mapping[str, Any]) -> bool:
    return bool(detection.get("mask_supervised", True))


def _tint(pixels: np.ndarray, mask: np.ndarray, color: Color, *, hatched: bool) -> None:
    """Mixes the colour into the mask's pixels, in place; its outline is drawn full."""
    rows, columns = np.nonzero(mask)
    if rows.size == 0:
        return
    top, left = rows.min(), columns.min()
    window = (slice(top, rows.max() + 1), slice(left, columns.max() + 1))
    inside, part = mask[window], pixels[window]
    share = np.full(inside.shape, TINT)
    if hatched:
        period = max(6, max(mask.shape) // 80)
        y, x = np.indices(inside.shape)
        stripe = (y + x + top + left) % period < period // 2
        share = np.where(stripe, 0.75, 0.12)
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    share = np.where(core, share, 1.0)[..., None]
    mixed = part * (1.0 - share) + np.array(color) * share
    part[inside] = np.rint(mixed[inside]).astype(np.uint8)


def _corners(
    detection: Mapping[str, Any], factor: int, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in pixels of the drawn image, inside it."""
    x, y, width, height = (float(value) * factor for value in detection["bbox"])
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
