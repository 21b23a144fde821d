"""The plot of AP over the IoU from which a detection counts as right: boxes and masks, of sets A and B."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from model.files import whole
from training.evaluate.measure import Results
from training.evaluate.precision import IOU_THRESHOLDS

WIDTH, HEIGHT, MARGIN, LEFT = 330, 220, 24, 40
"""Of a panel; between panels; room for the numbers at the left. In pixels."""
COLOURS = {"A": (150, 175, 205), "B": (31, 90, 160)}
INK, LINE = (30, 30, 30), (215, 215, 215)

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def write_plot(path: Path, results: Results) -> None:
    """Write a PNG with a panel of boxes and one of masks, whole or not at all; a group without a figure has no line."""
    font = ImageFont.load_default(13)
    image = Image.new("RGB", (2 * (LEFT + WIDTH) + 3 * MARGIN, HEIGHT + 5 * MARGIN), "white")
    draw = ImageDraw.Draw(image)
    for number, kind in enumerate(("box", "mask")):
        curves = {"A": getattr(results.a, kind).ap_by_iou, "B": getattr(results.b, kind).ap_by_iou}
        corner = (MARGIN + LEFT + number * (LEFT + WIDTH + MARGIN), 2 * MARGIN)
        _draw_panel(draw, font, corner, f"{kind} AP, %, at each IoU", curves)
    with whole(path) as file:
        image.save(file, "PNG")


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    font: Font,
    corner: tuple[int, int],
    heading: str,
    curves: dict[str, tuple[float | None, ...]],
) -> None:
    """One panel with its upper left corner at `corner`: IoU .50 to .95 to the right, AP 0 to 100 % upwards."""
    x, y = corner
    first, last = IOU_THRESHOLDS[0], IOU_THRESHOLDS[-1]

    def place(iou: float, ap: float) -> tuple[float, float]:
        return x + (iou - first) / (last - first) * WIDTH, y + (1 - ap) * HEIGHT

    draw.text((x, y - 1.5 * MARGIN), heading, INK, font)
    for ap in range(0, 101, 20):
        draw.line((place(first, ap / 100), place(last, ap / 100)), LINE)
        draw.text((x - 6, place(first, ap / 100)[1]), str(ap), INK, font, anchor="rm")
    for iou in IOU_THRESHOLDS:
        at, _ = place(iou, 0)
        draw.line((at, y, at, y + HEIGHT), LINE)
        draw.text((at, y + HEIGHT + 4), f"{iou:.2f}"[1:], INK, font, anchor="mt")
    for number, (name, curve) in enumerate(curves.items()):
        seen = [place(iou, ap) for iou, ap in zip(IOU_THRESHOLDS, curve, strict=True) if ap is not None]
        if len(seen) > 1:
            draw.line(seen, COLOURS[name], width=3, joint="curve")
        for at, up in seen:
            draw.ellipse((at - 3, up - 3, at + 3, up + 3), COLOURS[name])
        words = {"A": "A (with masks)", "B": "B (boxes only)"}[name] + ("" if seen else ": nothing to find")
        right, height = x + number * WIDTH / 2, y + HEIGHT + 1.7 * MARGIN
        draw.line((right, height, right + 20, height), COLOURS[name], width=3)
        draw.text((right + 26, height), words, INK, font, anchor="lm")
