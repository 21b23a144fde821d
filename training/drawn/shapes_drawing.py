"""Draws one image of the drawn data set, where the class and not the box says which pixels belong.

What the set is for: Mask^X R-CNN (Sec. 3) carries masks from classes that have them (set A) to classes that do not (set
B). It can only show itself where the box does not already say which pixels belong. So most objects come in pairs, one
drawn over the other in nearly the same box, and the forms differ in what is theirs: the pane of a window belongs to it,
the pane seen through a ring does not; the handle of a cup belongs to it, the ball in a gate's opening does not, though
it has the gate's colour. Classes share colours and forms, so that set A can teach about set B.

Every image has its own random numbers (seed, split, index); the arithmetic is +, -, *, / and comparison in float64,
without any function of the mathematics library, so that the same seed gives the same pixels everywhere.
"""

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.drawn.shapes_forms import CLASSES, COLOURS, FORMS, DrawnClass
from training.drawn.write import Bools, Floats, IntBox, mask_box

HUE_JITTER = 5.0  # degrees either way; neighbouring colours are 26 or more apart
SATURATION_JITTER = 0.06
VALUE_JITTER = 0.07

MIN_SIDE = 18.0  # pixels, of a single object
MIN_PAIR_SIDE = 28.0  # pixels: of two thin forms in one smaller box little would be seen
MAX_SIDE = 0.76  # of the image's side
ASPECT = 0.2  # width : height differs from 1 by up to this
TILT = 0.09  # tangent of half the largest rotation: about 10 degrees

OBJECTS = (2, 6)  # per image, both included
IN_PAIRS = 0.68  # of the objects, before what finds no room is left out
PAIR_SHIFT = 0.06  # of the side: how far the second box of a pair lies from the first ...
PAIR_SCALE = (0.84, 1.0)  # ... and how much smaller it is
PAIR_BOX_IOU = (0.60, 0.96)  # of the visible boxes
MIN_VISIBLE = 0.35  # of an object's pixels, when all is drawn
MIN_PIXELS = 24  # visible, of any object
UNIT_OVERLAP = 0.10  # how much of the smaller box two units (a single or a pair) may share

EMPTY_IMAGES = 0.02
CROWD_IMAGES = 0.02  # of the training images
CROWD_MEMBERS = (6, 10)
CROWD_SIDE = (8.0, 12.0)

DISTRACTORS = 3  # at most, grey forms nobody annotated
SPECKLES = 14  # at most, dots in the classes' colours
SUPERSAMPLING = 3  # per side of a pixel; an object owns the pixels of which it covers half the samples


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnObject:
    """One annotated object: `mask` bool [h, w] of its visible pixels; `pair` numbers its pair, if any."""

    category: DrawnClass
    mask: Bools
    pair: int | None
    crowd: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """An image, uint8 [h, w, 3] RGB, and what is annotated on it."""

    pixels: NDArray[np.uint8]
    objects: tuple[DrawnObject, ...]


class _Shape(NamedTuple):
    """A form rasterised on a window [h, w] of the image: coverages 0..1, float64 [h, w]."""

    window: tuple[slice, slice]
    paint: Floats
    pane: Floats
    stray: Floats
    mask: Bools  # bool [side, side]: the pixels of its own, were nothing over it
    pane_belongs: bool


class _Member(NamedTuple):
    category: DrawnClass
    shape: _Shape


class _Box(NamedTuple):
    """Centre and size in pixels."""

    x: float
    y: float
    width: float
    height: float


def box_iou(one: IntBox, other: IntBox) -> float:
    """Intersection over union of two XYXY boxes; 0 where both are empty."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - shared
    return shared / union if union else 0.0


def _rasterise(form: str, box: _Box, side: int, random: np.random.Generator) -> _Shape:
    """The form in the box, a little tilted, on an image side x side; what lies outside is cut off."""
    half = TILT * (2.0 * random.random() - 1.0)
    cosine, sine = (1.0 - half * half) / (1.0 + half * half), 2.0 * half / (1.0 + half * half)
    reach_x = 0.5 * (box.width * cosine + box.height * abs(sine))
    reach_y = 0.5 * (box.height * cosine + box.width * abs(sine))
    left, right = max(int(box.x - reach_x) - 1, 0), min(int(box.x + reach_x) + 2, side)
    top, bottom = max(int(box.y - reach_y) - 1, 0), min(int(box.y + reach_y) + 2, side)
    s = SUPERSAMPLING
    x = (np.arange((right - left) * s) + 0.5) / s + (left - box.x)
    y = (np.arange((bottom - top) * s) + 0.5) / s + (top - box.y)
    u = (x[None, :] * cosine + y[:, None] * sine) * (2.0 / box.width)
    v = (y[:, None] * cosine - x[None, :] * sine) * (2.0 / box.height)
    layers = FORMS[form](u, v, random)

    def coverage(samples: Bools) -> Floats:
        height, width = samples.shape[0] // s, samples.shape[1] // s
        counts: Floats = samples.reshape(height, s, width, s).sum(axis=(1, 3), dtype=np.float64)
        return counts / float(s * s)

    window = (slice(top, bottom), slice(left, right))
    mask = np.zeros((side, side), dtype=np.bool_)
    mask[window] = coverage(layers.paint | layers.pane if layers.pane_belongs else layers.paint) >= 0.5
    return _Shape(
        window,
        coverage(layers.paint),
        coverage(layers.pane),
        coverage(layers.stray),
        mask,
        layers.pane_belongs,
    )


def _uniform(random: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * random.random()


def _class_colour(colour: str, random: np.random.Generator) -> Floats:
    """The colour, jittered, as RGB in 0..255, float64 [3]."""
    hue, saturation, value = COLOURS[colour]
    hue += _uniform(random, -HUE_JITTER, HUE_JITTER)
    saturation += _uniform(random, -SATURATION_JITTER, SATURATION_JITTER)
    value += _uniform(random, -VALUE_JITTER, VALUE_JITTER)
    return 255.0 * np.array(colorsys.hsv_to_rgb((hue / 360.0) % 1.0, min(saturation, 1.0), min(value, 1.0)))


def _triangle_wave(x: Floats) -> Floats:
    """Period 1, from 0 to 1 and back."""
    return np.abs(2.0 * (x - np.floor(x)) - 1.0)


def _background(side: int, random: np.random.Generator) -> Floats:
    """A muted grey with a gradient, stripes and clouds, float64 [side, side, 3] in about 0..255."""
    ramp = np.arange(side) / side
    slope_x, slope_y = _uniform(random, -50.0, 50.0), _uniform(random, -50.0, 50.0)
    grey = _uniform(random, 70.0, 170.0) + slope_x * (ramp[None, :] - 0.5) + slope_y * (ramp[:, None] - 0.5)
    if random.random() < 0.6:
        across, down = _uniform(random, -14.0, 14.0), _uniform(random, -14.0, 14.0)
        waves = _triangle_wave(across * ramp[None, :] + down * ramp[:, None])
        grey = grey + _uniform(random, 6.0, 34.0) * (waves - 0.5)
    knots = int(random.integers(3, 9))
    clouds = random.random((knots + 1, knots + 1)) - 0.5
    place = ramp * knots
    whole = place.astype(np.int64)
    part = place - whole
    rows = clouds[whole] * (1.0 - part[:, None]) + clouds[whole + 1] * part[:, None]
    grey = grey + _uniform(random, 10.0, 50.0) * (rows[:, whole] * (1.0 - part) + rows[:, whole + 1] * part)
    tint = np.array([_uniform(random, -10.0, 10.0) for _ in range(3)])
    canvas: Floats = np.repeat(grey[:, :, None], 3, axis=2) + tint
    return canvas


def _lay(canvas: Floats, window: tuple[slice, slice], coverage: Floats, colour: Floats) -> None:
    """Blend the colour, [3] or [h, w, 3], into the window of the canvas."""
    canvas[window] += coverage[:, :, None] * (colour - canvas[window])


def _surface(shape: _Shape, colour: Floats, random: np.random.Generator) -> Floats:
    """The colour, brighter towards one side, [h, w, 3]."""
    height, width = shape.paint.shape
    slope_x, slope_y = _uniform(random, -0.12, 0.12), _uniform(random, -0.12, 0.12)
    x, y = np.arange(width) / width - 0.5, np.arange(height) / height - 0.5
    brightness: Floats = 1.0 + slope_x * x[None, :] + slope_y * y[:, None]
    return brightness[:, :, None] * colour


def _pane(shape: _Shape, random: np.random.Generator) -> Floats:
    """Light and dark grey stripes, [h, w, 1]."""
    height, width = shape.paint.shape
    period = _uniform(random, 3.5, 6.0)
    lean = _uniform(random, -1.0, 1.0)
    x, y = np.arange(width) / period, np.arange(height) / period
    dark, light = _uniform(random, 40.0, 90.0), _uniform(random, 180.0, 235.0)
    return (dark + (light - dark) * _triangle_wave(x[None, :] * lean + y[:, None]))[:, :, None]


def _draw_unit(canvas: Floats, members: tuple[_Member, ...], random: np.random.Generator) -> None:
    """Draw the members from the lowest to the uppermost; below them all, what belongs to none."""
    colours = [_class_colour(member.category.colour, random) for member in members]
    panes = [_pane(member.shape, random) for member in members]
    for member, colour, pane in zip(members, colours, panes, strict=True):
        if not member.shape.pane_belongs:
            _lay(canvas, member.shape.window, member.shape.pane, pane)
        _lay(canvas, member.shape.window, member.shape.stray, _surface(member.shape, colour, random))
    for member, colour, pane in zip(members, colours, panes, strict=True):
        if member.shape.pane_belongs:
            _lay(canvas, member.shape.window, member.shape.pane, pane)
        _lay(canvas, member.shape.window, member.shape.paint, _surface(member.shape, colour, random))


def _draw_distractors(canvas: Floats, random: np.random.Generator) -> None:
    """Grey forms and dots in the classes' colours that are not annotated."""
    side = canvas.shape[0]
    forms, colours = list(FORMS), list(COLOURS)
    for _ in range(int(random.integers(0, DISTRACTORS + 1))):
        size = _uniform(random, MIN_SIDE, 0.45 * side)
        box = _Box(_uniform(random, 0.0, side), _uniform(random, 0.0, side), size, size)
        shape = _rasterise(forms[int(random.integers(len(forms)))], box, side, random)
        grey = np.full(3, _uniform(random, 30.0, 225.0)) + np.array(
            [_uniform(random, -8.0, 8.0) for _ in range(3)]
        )
        _lay(canvas, shape.window, np.maximum(shape.paint, shape.stray), grey)
    for _ in range(int(random.integers(0, SPECKLES + 1))):
        top, left = int(random.integers(0, side - 3)), int(random.integers(0, side - 3))
        height, width = int(random.integers(1, 4)), int(random.integers(1, 4))
        canvas[top : top + height, left : left + width] = _class_colour(
            colours[int(random.integers(8))], random
        )


def _finish(canvas: Floats, random: np.random.Generator) -> NDArray[np.uint8]:
    """Slight blur, slight noise, whole numbers."""
    weight = _uniform(random, 0.0, 0.16)  # of each neighbour, first along columns, then along rows
    padded = np.pad(canvas, ((1, 1), (0, 0), (0, 0)), mode="edge")
    canvas = (1.0 - 2.0 * weight) * canvas + weight * (padded[:-2] + padded[2:])
    padded = np.pad(canvas, ((0, 0), (1, 1), (0, 0)), mode="edge")
    canvas = (1.0 - 2.0 * weight) * canvas + weight * (padded[:, :-2] + padded[:, 2:])
    noise = random.integers(-128, 128, size=canvas.shape, dtype=np.int8) * (
        _uniform(random, 2.0, 12.0) / 128.0
    )
    return np.clip(np.rint(canvas + noise), 0.0, 255.0).astype(np.uint8)


def _random_box(side: int, smallest: float, room: float, random: np.random.Generator) -> _Box:
    """A box inside the image; small ones are more frequent. `room` in 0..1 shortens the largest."""
    share = random.random()
    largest = max(MAX_SIDE * side * room, smallest)
    size = smallest + (largest - smallest) * share * (0.35 + 0.65 * share)
    stretch = 1.0 + _uniform(random, -ASPECT, ASPECT)
    width, height = (size * stretch, size) if random.random() < 0.5 else (size, size * stretch)
    margin_x, margin_y = 0.5 * width + 2.0, 0.5 * height + 2.0
    return _Box(
        _uniform(random, margin_x, side - margin_x),
        _uniform(random, margin_y, side - margin_y),
        width,
        height,
    )


def _overlap(one: _Box, other: _Box) -> float:
    """Shared area as a share of the smaller box."""

    def shared(a: float, b: float, side_a: float, side_b: float) -> float:
        return min(a + side_a / 2, b + side_b / 2) - max(a - side_a / 2, b - side_b / 2)

    width, height = (
        shared(one.x, other.x, one.width, other.width),
        shared(one.y, other.y, one.height, other.height),
    )
    return max(width, 0.0) * max(height, 0.0) / min(one.width * one.height, other.width * other.height)


def _partner_box(box: _Box, random: np.random.Generator) -> _Box:
    return _Box(
        box.x + _uniform(random, -PAIR_SHIFT, PAIR_SHIFT) * box.width,
        box.y + _uniform(random, -PAIR_SHIFT, PAIR_SHIFT) * box.height,
        box.width * _uniform(random, *PAIR_SCALE),
        box.height * _uniform(random, *PAIR_SCALE),
    )


def _pair(box: _Box, side: int, random: np.random.Generator) -> tuple[_Member, ...]:
    """Two objects unlike in colour and form in nearly one box, lower first; () where boxes differ much."""
    first = CLASSES[int(random.integers(len(CLASSES)))]
    others = [c for c in CLASSES if c.colour != first.colour and c.form != first.form]
    second = others[int(random.integers(len(others)))]
    boxes = [box, _partner_box(box, random)]
    if random.random() < 0.5:
        boxes.reverse()
    members = [
        _Member(c, _rasterise(c.form, b, side, random)) for c, b in zip((first, second), boxes, strict=True)
    ]
    members.sort(key=lambda member: not member.shape.pane_belongs)  # a window above would hide the other
    lower, upper = members
    seen = lower.shape.mask & ~upper.shape.mask
    low, high = PAIR_BOX_IOU
    if low <= box_iou(mask_box(seen), mask_box(upper.shape.mask)) <= high:
        return lower, upper
    return ()


def _still_visible(full: list[Bools], added: list[Bools]) -> bool:
    """Whether enough of every mask is seen, the last on top."""
    over = np.zeros_like(added[0])
    for mask in reversed(full + added):
        seen, whole = int((mask & ~over).sum()), int(mask.sum())
        if seen < MIN_PIXELS or seen < MIN_VISIBLE * whole:
            return False
        over |= mask
    return True


def _units(side: int, random: np.random.Generator) -> Iterator[tuple[_Member, ...]]:
    """Singles and pairs with enough room for each; what finds none after some trials is left out."""
    count = int(random.integers(OBJECTS[0], OBJECTS[1] + 1))
    wished = IN_PAIRS * count / 2
    pairs = int(wished) + int(random.random() < wished - int(wished))
    boxes: list[_Box] = []
    masks: list[Bools] = []
    for unit in range(pairs + count - 2 * pairs):
        paired = unit < pairs
        for trial in range(60):
            room = (1.0 - trial / 60) * (1.0 if count <= 3 else 0.8)
            box = _random_box(side, MIN_PAIR_SIDE if paired else MIN_SIDE, room, random)
            if any(_overlap(box, other) > UNIT_OVERLAP for other in boxes):
                continue
            if paired:
                members = _pair(box, side, random)
            else:
                single = CLASSES[int(random.integers(len(CLASSES)))]
                members = (_Member(single, _rasterise(single.form, box, side, random)),)
            added = [member.shape.mask for member in members]
            if added and _still_visible(masks, added):
                boxes.append(box)
                masks += added
                yield members
                break


def _crowd(side: int, random: np.random.Generator) -> tuple[_Member, ...]:
    """Many small objects of one class in one region."""
    category = CLASSES[int(random.integers(len(CLASSES)))]
    region = 0.4 * side
    left, top = _uniform(random, 8.0, side - region - 8.0), _uniform(random, 8.0, side - region - 8.0)
    members = []
    for _ in range(int(random.integers(CROWD_MEMBERS[0], CROWD_MEMBERS[1] + 1))):
        size = _uniform(random, *CROWD_SIDE)
        box = _Box(left + region * random.random(), top + region * random.random(), size, size)
        members.append(_Member(category, _rasterise(category.form, box, side, random)))
    return tuple(members)


def draw(*, seed: int, split: int, index: int, side: int, crowds: bool) -> Drawing:
    """Draw image `index` of a split, side x side pixels; the same arguments give the same pixels and masks.

    `crowds` lets some images carry a crowd region (one object with `crowd` set, its mask the union of its members).
    """
    random = np.random.Generator(np.random.PCG64([seed, split, index]))
    canvas = _background(side, random)
    _draw_distractors(canvas, random)
    if random.random() < EMPTY_IMAGES:
        return Drawing(pixels=_finish(canvas, random), objects=())
    crowd = _crowd(side, random) if crowds and random.random() < CROWD_IMAGES else ()
    for member in crowd:
        _draw_unit(canvas, (member,), random)
    units = list(_units(side, random))
    for members in units:
        _draw_unit(canvas, members, random)
    over = np.zeros((side, side), dtype=np.bool_)
    objects: list[DrawnObject] = []
    for number, members in reversed(list(enumerate(units))):
        for member in reversed(members):
            mask = member.shape.mask & ~over
            over |= member.shape.mask
            objects.append(
                DrawnObject(category=member.category, mask=mask, pair=number if len(members) == 2 else None)
            )
    if crowd:
        mask = np.logical_or.reduce([member.shape.mask for member in crowd]) & ~over
        if int(mask.sum()) >= MIN_PIXELS:
            objects.append(DrawnObject(category=crowd[0].category, mask=mask, pair=None, crowd=True))
    objects.reverse()
    return Drawing(pixels=_finish(canvas, random), objects=tuple(objects))
