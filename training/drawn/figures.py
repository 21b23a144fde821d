"""Drawn stick figures that face the viewer, so that their left is the image's right (Mask R-CNN, Sec. 5).

What a keypoint is called depends on the whole figure: limbs have no colours or forms of their own, arms and legs
bend and cross, and only the side of the trunk that a limb begins on says left or right. Beside the figures stand
crates, a class without keypoints, and grey sticks that belong to nobody.
"""

import colorsys
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.drawn.write import SPLITS, Bools, Drawn, Floats, IntBox, Kind, SetConfig, annotation, mask_box

SIDES = ("left", "right")
NAMES: tuple[str, ...] = (
    "head", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_hand", "right_hand", "left_hip",
    "right_hip", "left_knee", "right_knee", "left_foot", "right_foot",
)  # fmt: skip
SKELETON: tuple[tuple[str, str], ...] = (
    ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"), ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"), ("left_shoulder", "left_elbow"), ("left_elbow", "left_hand"),
    ("right_shoulder", "right_elbow"), ("right_elbow", "right_hand"), ("left_hip", "left_knee"),
    ("left_knee", "left_foot"), ("right_hip", "right_knee"), ("right_knee", "right_foot"),
)  # fmt: skip
CATEGORIES = {1: "figure", 2: "crate"}

COUNT = (1, 3)  # of figures in an image, both included
CRATES = (0, 2)
STICKS = (0, 3)
HEIGHT = (0.34, 0.72)  # of the image's side, of an upright figure
LEAN = 20.0  # degrees either way
APART = 0.35  # the most of the smaller box that two objects may share
OUT_OF_IMAGE = 0.06  # of a figure's height, by which it may stick out
LEAST_PIXELS = 60


class Figure(NamedTuple):
    """Where everything is: keypoints float64 [K, 2] (x, y), limbs as pairs of points, their half width, the head."""

    points: Floats
    limbs: tuple[tuple[Floats, Floats], ...]
    thickness: float
    head_radius: float


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnObject:
    """One annotated object: `mask` bool [h, w] of its visible pixels, `keypoints` float64 [K, 3] or none."""

    category_id: int
    mask: Bools
    keypoints: Floats | None


def _turned(degrees: float) -> Floats:
    """A unit vector, down turned by so much towards the image's right."""
    angle = math.radians(degrees)
    return np.array([math.sin(angle), math.cos(angle)])


def pose(height: float, centre: tuple[float, float], random: np.random.Generator) -> Figure:
    """A figure of so many pixels when it stands upright, its trunk's middle at `centre`."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * random.random()

    down = _turned(between(-LEAN, LEAN))
    across = np.array([down[1], -down[0]])  # to the image's right, so to the figure's left
    trunk = 0.3 * height
    neck = np.array(centre) - 0.5 * trunk * down
    at: dict[str, Floats] = {"head": neck - 0.12 * height * down}
    lean = math.degrees(math.atan2(down[0], down[1]))
    for side, sign in zip(SIDES, (1.0, -1.0), strict=True):
        at[f"{side}_shoulder"] = neck + sign * 0.1 * height * across
        at[f"{side}_hip"] = neck + trunk * down + sign * 0.065 * height * across
        upper = lean + sign * between(-15.0, 150.0)
        at[f"{side}_elbow"] = at[f"{side}_shoulder"] + 0.17 * height * _turned(upper)
        at[f"{side}_hand"] = at[f"{side}_elbow"] + 0.17 * height * _turned(
            upper + sign * between(-70.0, 110.0)
        )
        upper = lean + sign * between(-12.0, 60.0)
        at[f"{side}_knee"] = at[f"{side}_hip"] + 0.2 * height * _turned(upper)
        at[f"{side}_foot"] = at[f"{side}_knee"] + 0.2 * height * _turned(upper - sign * between(-15.0, 60.0))
    limbs = (*((at[one], at[other]) for one, other in SKELETON), (neck, at["head"]))
    return Figure(np.stack([at[name] for name in NAMES]), limbs, max(0.028 * height, 1.0), 0.075 * height)


def coverage(figure: Figure, side: int) -> Floats:
    """How much of each pixel the figure covers, 0..1, [side, side]."""
    centres = np.arange(side) + 0.5
    x, y = centres[None, :], centres[:, None]
    least = np.hypot(x - figure.points[0, 0], y - figure.points[0, 1]) - figure.head_radius
    for begin, end in figure.limbs:
        along = end - begin
        share = ((x - begin[0]) * along[0] + (y - begin[1]) * along[1]) / max(float(along @ along), 1e-9)
        share = np.clip(share, 0.0, 1.0)
        distance = np.hypot(x - begin[0] - share * along[0], y - begin[1] - share * along[1])
        least = np.minimum(least, distance - figure.thickness)
    covered: Floats = np.clip(0.5 - least, 0.0, 1.0)
    return covered


def draw(
    *, seed: int, split: int, index: int, side: int
) -> tuple[NDArray[np.uint8], tuple[DrawnObject, ...]]:
    """An image, uint8 [side, side, 3], and what is annotated on it; the same for the same arguments."""
    random = np.random.default_rng([seed, split, index])
    canvas = _background(side, random)
    for _ in range(int(random.integers(STICKS[0], STICKS[1] + 1))):
        _stick(canvas, random)
    layers: list[tuple[int, Floats, Floats | None]] = []
    kinds = [2] * int(random.integers(CRATES[0], CRATES[1] + 1))
    kinds += [1] * int(random.integers(COUNT[0], COUNT[1] + 1))
    for kind in kinds:
        layers += _placed(kind, side, [covered >= 0.5 for _, covered, _ in layers], random)
    for _, covered, _ in layers:
        colour = 255.0 * np.array(colorsys.hsv_to_rgb(random.random(), 0.5 + 0.5 * random.random(), 0.95))
        canvas += covered[:, :, None] * (colour - canvas)
    noise = random.normal(0.0, 2.0 + 6.0 * random.random(), canvas.shape)
    pixels = np.clip(np.rint(canvas + noise), 0.0, 255.0).astype(np.uint8)
    return pixels, _annotated(layers)


def _annotated(layers: list[tuple[int, Floats, Floats | None]]) -> tuple[DrawnObject, ...]:
    """What can be seen of every object, the last layer on top."""
    over = np.zeros_like(layers[0][1], dtype=np.bool_)
    found = []
    for kind, covered, points in reversed(layers):
        mask = (covered >= 0.5) & ~over
        keypoints = None if points is None else _with_visibility(points, over)
        over |= covered >= 0.5
        if mask.sum() >= LEAST_PIXELS:
            found.append(DrawnObject(category_id=kind, mask=mask, keypoints=keypoints))
    return tuple(reversed(found))


def _with_visibility(points: Floats, over: Bools) -> Floats:
    """[K, 3]: 2 where a keypoint is seen, 1 where another object lies over it, 0 outside the image."""
    side = over.shape[0]
    inside = ((points >= 0) & (points < side)).all(axis=1)
    cell = np.clip(points.astype(np.int64), 0, side - 1)
    seen = np.where(inside, np.where(over[cell[:, 1], cell[:, 0]], 1.0, 2.0), 0.0)
    return np.concatenate([np.where(inside[:, None], points, 0.0), seen[:, None]], axis=1)


def _placed(
    kind: int, side: int, taken: list[Bools], random: np.random.Generator
) -> list[tuple[int, Floats, Floats | None]]:
    """The object where there is room for it, after some trials; else nothing."""
    for _ in range(8):
        points: Floats | None = None
        if kind == 1:
            height = side * (HEIGHT[0] + (HEIGHT[1] - HEIGHT[0]) * random.random())
            figure = pose(height, (side * random.random(), side * random.random()), random)
            beyond = OUT_OF_IMAGE * height
            if figure.points.min() < -beyond or figure.points.max() > side + beyond:
                continue
            points, covered = figure.points, coverage(figure, side)
        else:
            width, height = (side * (0.1 + 0.2 * random.random()) for _ in range(2))
            x, y = (
                width / 2 + random.random() * (side - width),
                height / 2 + random.random() * (side - height),
            )
            centres = np.arange(side) + 0.5
            across = np.clip(width / 2 - np.abs(centres - x) + 0.5, 0.0, 1.0)
            covered = across[None, :] * np.clip(height / 2 - np.abs(centres - y) + 0.5, 0.0, 1.0)[:, None]
        box = mask_box(covered >= 0.5)
        if all(_shared(box, mask_box(mask)) <= APART for mask in taken):
            return [(kind, covered, points)]
    return []


def _shared(one: IntBox, other: IntBox) -> float:
    """Shared area as a part of the smaller box."""
    width, height = (min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return max(width, 0) * max(height, 0) / max(smaller, 1)


def _background(side: int, random: np.random.Generator) -> Floats:
    """A muted colour with a gradient, float64 [side, side, 3]."""
    ramp = np.arange(side) / side - 0.5
    slope_x, slope_y = 80.0 * (random.random(2) - 0.5)
    grey = 60.0 + 90.0 * random.random() + slope_x * ramp[None, :] + slope_y * ramp[:, None]
    canvas: Floats = np.repeat(grey[:, :, None], 3, axis=2) + 20.0 * (random.random(3) - 0.5)
    return canvas


def _stick(canvas: Floats, random: np.random.Generator) -> None:
    side = canvas.shape[0]
    begin, end = side * random.random(2), side * random.random(2)
    end = begin + 0.4 * (end - begin)
    figure = Figure(np.full((1, 2), -9.0 * side), ((begin, end),), 1.0 + 1.5 * random.random(), 0.0)
    canvas += coverage(figure, side)[:, :, None] * (40.0 + 180.0 * random.random() - canvas)


def _record(drawn: DrawnObject) -> dict[str, Any]:
    """COCO's record of an object. Keypoints are counted in whole pixels from 0, as COCO does."""
    record = annotation(drawn.mask, drawn.category_id)
    if drawn.keypoints is not None:
        flat: list[float] = []
        for x, y, visible in drawn.keypoints.tolist():
            flat += [round(x - 0.5, 2), round(y - 0.5, 2), int(visible)] if visible else [0, 0, 0]
        record |= {"keypoints": flat, "num_keypoints": sum(v > 0 for v in flat[2::3])}
    return record


def _draw(config: SetConfig, split: str, index: int) -> Drawn:
    pixels, objects = draw(seed=config.seed, split=SPLITS.index(split), index=index, side=config.size)
    return Drawn(pixels, [_record(drawn) for drawn in objects])


def _document(config: SetConfig, split: str, images: list[Any], annotations: list[Any]) -> dict[str, Any]:
    numbers = [[NAMES.index(one) + 1, NAMES.index(other) + 1] for one, other in SKELETON]
    categories: list[dict[str, Any]] = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    categories[0] |= {"keypoints": list(NAMES), "skeleton": numbers}
    return {"images": images, "annotations": annotations, "categories": categories}


@dataclass(frozen=True, kw_only=True)
class FiguresConfig(SetConfig):
    """See `SetConfig`."""

    train: int = 2000
    largest: ClassVar[int] = 1024


FIGURES = Kind(defaults=FiguresConfig(), draw=_draw, document=_document, sources=(__file__,))
