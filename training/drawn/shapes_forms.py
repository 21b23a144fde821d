"""The drawn classes, 8 colours x 6 forms, half with masks, and which pixels a form calls its own.

A form works on samples in its own coordinates: u to the right and v down, both -1..1 over its box.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from training.drawn.write import Bools, Floats

COLOURS: dict[str, tuple[float, float, float]] = {  # name: hue in degrees, saturation, value
    "red": (0.0, 0.90, 0.85),
    "orange": (29.0, 0.95, 0.97),
    "yellow": (56.0, 0.85, 0.97),
    "green": (125.0, 0.75, 0.62),
    "cyan": (180.0, 0.75, 0.88),
    "blue": (224.0, 0.85, 0.85),
    "purple": (273.0, 0.70, 0.68),
    "pink": (325.0, 0.48, 0.98),
}
RING_PANE = 0.5  # share of the rings through which a pane is seen that does not belong to them


class Layers(NamedTuple):
    """Bool [h, w] of samples: what a form paints of its own, a striped pane, and what only has its colour."""

    paint: Bools
    pane: Bools
    stray: Bools
    pane_belongs: bool


def _ring(u: Floats, v: Floats, random: np.random.Generator) -> Layers:
    inner = 1.0 - (0.30 + 0.10 * random.random())
    squared = u * u + v * v
    paint = (squared <= 1.0) & (squared >= inner * inner)
    pane = (squared < inner * inner) & (random.random() < RING_PANE)
    return Layers(paint, pane, np.zeros_like(paint), False)


def _window(u: Floats, v: Floats, random: np.random.Generator) -> Layers:
    inner = 1.0 - (0.20 + 0.08 * random.random())
    distance = np.maximum(np.abs(u), np.abs(v))
    paint = (distance <= 1.0) & (distance >= inner)
    return Layers(paint, distance < inner, np.zeros_like(paint), True)


def _cross(u: Floats, v: Floats, random: np.random.Generator) -> Layers:
    half = 0.17 + 0.08 * random.random()
    x, y = np.abs(u), np.abs(v)
    paint = ((x <= half) | (y <= half)) & (np.maximum(x, y) <= 1.0)
    nothing = np.zeros_like(paint)
    return Layers(paint, nothing, nothing, False)


def _saltire(u: Floats, v: Floats, random: np.random.Generator) -> Layers:
    half = 0.20 + 0.08 * random.random()
    x, y = np.abs(u), np.abs(v)
    paint = (np.abs(x - y) <= half) & (np.maximum(x, y) <= 1.0)
    nothing = np.zeros_like(paint)
    return Layers(paint, nothing, nothing, False)


def _cup(u: Floats, v: Floats, random: np.random.Generator) -> Layers:
    """Open at the top, with a handle left or right that belongs to it; what is seen through it does not."""
    wall = 0.26 + 0.08 * random.random()
    right = 0.35
    x = u if random.random() < 0.5 else -u
    body = (x >= -1.0) & (x <= right) & (np.abs(v) <= 1.0)
    inside = (x > -1.0 + wall) & (x < right - wall) & (v < 1.0 - wall)
    a, b = (x - right) / (1.0 - right), v / 0.62
    squared = a * a + b * b
    handle = (x > right) & (squared <= 1.0) & (squared >= 0.22)
    paint = (body & ~inside) | handle
    nothing = np.zeros_like(paint)
    return Layers(paint, nothing, nothing, False)


def _gate(u: Floats, v: Floats, random: np.random.Generator) -> Layers:
    """An arch on two legs; the ball in its opening has its colour and does not belong to it."""
    wall = 0.28 + 0.08 * random.random()
    inner = 1.0 - wall
    squared = u * u + v * v
    above = v < 0.0
    outside = np.where(above, squared <= 1.0, (np.abs(u) <= 1.0) & (v <= 1.0))
    opening = np.where(above, squared < inner * inner, np.abs(u) < inner)
    down = v - (0.45 + 0.1 * random.random())
    ball = (u * u + down * down) <= 0.32 * 0.32
    paint = outside & ~opening
    return Layers(paint, np.zeros_like(paint), ball & opening, False)


FORMS: dict[str, Callable[[Floats, Floats, np.random.Generator], Layers]] = {
    "ring": _ring,
    "window": _window,
    "cross": _cross,
    "saltire": _saltire,
    "cup": _cup,
    "gate": _gate,
}
# The forms that have masks, by colour: three for each colour, four colours for each form, as many in set B.
# No plain checkerboard: there the even colours would meet the even forms only, and A would fall into two
# halves that share nothing.
FORMS_WITH_MASKS = ((0, 1, 3), (1, 2, 4), (2, 3, 5), (3, 4, 0), (4, 5, 1), (5, 0, 2), (0, 2, 4), (1, 3, 5))


@dataclass(frozen=True, kw_only=True)
class DrawnClass:
    """A category: its COCO id (with holes between colours), name, colour, form, and whether in set A."""

    id: int
    name: str
    colour: str
    form: str
    has_mask: bool


CLASSES: tuple[DrawnClass, ...] = tuple(
    DrawnClass(
        id=10 * i + j + 1,
        name=f"{colour} {form}",
        colour=colour,
        form=form,
        has_mask=j in FORMS_WITH_MASKS[i],
    )
    for i, colour in enumerate(COLOURS)
    for j, form in enumerate(FORMS)
)
