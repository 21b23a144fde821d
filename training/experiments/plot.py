"""The plot of a grid: mask IoU and mask AP of every row on set B, and beside them on set A."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from model.files import whole

PANELS = (("mask_iou", "mask IoU on ground-truth boxes"), ("mask_ap", "mask AP"))
"""Begin of the figures' names, and the heading of their panel."""
BAR, GAP, MARGIN, PANEL = 18, 14, 24, 420
"""Height of a row's two bars together, space between rows, border, width of a panel; in pixels."""
COLOURS = {"b": (31, 90, 160), "a": (190, 205, 220)}
INK, LINE = (30, 30, 30), (215, 215, 215)


def write_plot(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write the entries of `training.experiments.table.summary` as horizontal bars, whole or not at all.

    Bars are means over the runs, whiskers the sample deviation to both sides; a row without a figure has no bar.
    """
    font = ImageFont.load_default(13)
    labels = [
        f"{entry['label']} [{entry['split']}]" if entry["split"] else entry["label"] for entry in entries
    ]
    left = MARGIN + int(max(font.getlength(label) for label in labels)) + GAP
    top, step = 3 * MARGIN, BAR + GAP
    size = (left + len(PANELS) * (PANEL + MARGIN), top + len(entries) * step + MARGIN)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for number, label in enumerate(labels):
        draw.text((MARGIN, top + number * step + BAR / 2), label, INK, font, anchor="lm")
    for position, (figure, heading) in enumerate(PANELS):
        _draw_panel(draw, font, (left + position * (PANEL + MARGIN), top), figure, heading, entries)
    with whole(path) as file:
        image.save(file, "PNG")


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    corner: tuple[int, int],
    figure: str,
    heading: str,
    entries: Sequence[dict[str, Any]],
) -> None:
    """One panel of bars with its upper left corner at `corner`; its axis goes from 0 to the next ten percent."""
    x, y = corner
    bottom = y + len(entries) * (BAR + GAP)
    found = [entry["figures"][f"{figure}_{group}"] for entry in entries for group in COLOURS]
    highest = max(((one["mean"] or 0.0) + (one["deviation"] or 0.0) for one in found), default=0.0)
    tens = min(int(highest * 10) + 1, 10)
    scale = (PANEL - MARGIN) / (tens / 10)
    draw.text((x, y - 2 * MARGIN), f"{heading}, %: dark B (no masks in training), light A", INK, font)
    for ten in range(tens + 1):
        at = x + ten / 10 * scale
        draw.line((at, y - GAP / 2, at, bottom), LINE)
        draw.text((at, y - GAP / 2), str(10 * ten), INK, font, anchor="mb")
    for number, entry in enumerate(entries):
        for part, (group, colour) in enumerate(COLOURS.items()):
            one = entry["figures"][f"{figure}_{group}"]
            if one["mean"] is None:
                continue
            begin = y + number * (BAR + GAP) + part * BAR / 2
            end = x + one["mean"] * scale
            draw.rectangle((x, begin, end, begin + BAR / 2 - 1), colour)
            if one["deviation"] is not None:
                reach, middle = one["deviation"] * scale, begin + BAR / 4
                draw.line((max(end - reach, x), middle, end + reach, middle), INK)
