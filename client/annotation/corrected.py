"""Annotations as CVAT and Label Studio give them back, corrected by people -> COCO, which training reads.

CVAT: XML 1.1 "CVAT for images", with boxes (rotated ones too), polygons, masks and ellipses; shapes of one group and
label are one object. Label Studio: its JSON export, with rectangles, polygons, brushes and ellipses; regions of one
parent and label are one object. Everything else is counted and told.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from ..many.files import read_json
from .label_studio import file_name_of

ELLIPSE_POINTS = 48
CROWD = ("iscrowd", "is_crowd", "crowd")
"""Attributes of CVAT by which an object is many."""
MOST_BRUSH_VALUES = 2**30


@dataclass
class Object:
    """One object of an image: polygons [x, y, ...] in pixels, or pixels bool [height, width], or its box alone."""

    category: str
    polygons: list[list[float]] = field(default_factory=list)
    pixels: np.ndarray | None = None
    box: tuple[float, float, float, float] | None = None
    crowd: bool = False


@dataclass
class Annotated:
    """An image and what people say is in it."""

    file_name: str
    height: int
    width: int
    objects: list[Object]


@dataclass
class Corrected:
    """All images, the labels that the tool knows in their order, and what was left out, by its name."""

    images: list[Annotated]
    labels: list[str]
    left_out: Counter[str] = field(default_factory=Counter)


def read_cvat(path: Path) -> Corrected:
    """CVAT's annotations of images. Raises ValueError: the file is something else, with what it is or lacks."""
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, OSError) as error:
        raise ValueError(f"{path} cannot be read as XML: {error}; export as 'CVAT for images 1.1'") from error
    if root.tag != "annotations":
        raise ValueError(f"{path} is XML of <{root.tag}>; <annotations> of 'CVAT for images 1.1' is expected")
    if root.find("track") is not None:
        raise ValueError(
            f"{path} has tracks, so it is 'CVAT for video'; export the task as 'CVAT for images 1.1'"
        )
    labels = [
        one.findtext("name") or ""
        for one in root.iterfind("meta//labels/label")
        if one.findtext("parent") is None
    ]
    made = Corrected(images=[], labels=list(dict.fromkeys(labels)))
    for image in root.iterfind("image"):
        name = image.get("name") or f"number {image.get('id')}"
        try:
            height, width = int(image.attrib["height"]), int(image.attrib["width"])
            objects = list(_cvat_objects(image, height, width, made.left_out))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: image {name} cannot be read: {type(error).__name__}: {error}"
            ) from error
        made.images.append(Annotated(name, height, width, objects))
    return made


def _cvat_objects(image: ET.Element, height: int, width: int, left_out: Counter[str]) -> Iterator[Object]:
    groups: dict[tuple[str, str], Object] = {}
    for shape in image:
        kind, label = shape.tag, shape.get("label", "")
        if kind in ("attribute", "tag"):
            left_out["tags of images"] += kind == "tag"
            continue
        if kind not in ("box", "polygon", "mask", "ellipse"):
            left_out[f"shapes of kind {kind}"] += 1
            continue
        one = Object(label, crowd=any(_is_crowd(attribute) for attribute in shape.iterfind("attribute")))
        if kind == "mask":
            one.pixels = _cvat_mask(shape, height, width)
        elif kind == "polygon":
            points = [point.split(",") for point in shape.attrib["points"].split(";")]
            if any(len(point) != 2 for point in points):
                raise ValueError(
                    f"a polygon's points are {shape.attrib['points'][:40]!r}; x,y;x,y;... is expected"
                )
            one.polygons = [[float(value) for point in points for value in point]]
        elif kind == "ellipse":
            centre, radii = [
                [float(shape.attrib[key]) for key in keys] for keys in (("cx", "cy"), ("rx", "ry"))
            ]
            one.polygons = [_ellipse(centre, radii, float(shape.get("rotation", 0)))]
        else:
            sides = [float(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr")]
            turned = float(shape.get("rotation", 0)) % 360
            one.box = (sides[0], sides[1], sides[2], sides[3])
            one.polygons = [_turned(one.box, turned, about_corner=False)] if turned else []
        group = shape.get("group_id", "0")
        first = (
            groups.setdefault((group, label), one)
            if group != "0" and one.polygons and one.box is None
            else one
        )
        if first is one:
            yield one
        else:  # which was handed on already, and is looked at when all are read
            first.polygons += one.polygons


def _is_crowd(attribute: ET.Element) -> bool:
    return attribute.get("name", "").lower() in CROWD and (attribute.text or "").lower() in (
        "true",
        "1",
        "yes",
    )


def _cvat_mask(shape: ET.Element, height: int, width: int) -> np.ndarray:
    left, top, columns, rows = (int(float(shape.attrib[key])) for key in ("left", "top", "width", "height"))
    runs = np.array([int(one) for one in shape.attrib["rle"].split(",")], np.int64)
    if runs.min(initial=0) < 0 or runs.sum() != rows * columns:
        raise ValueError(f"a mask's runs cover {runs.sum()} pixels of its {rows} x {columns}")
    if left < 0 or top < 0 or left + columns > width or top + rows > height:
        raise ValueError(
            f"a mask of {columns} x {rows} at {left}, {top} leaves the image of {width} x {height}"
        )
    pixels = np.zeros((height, width), bool)
    pixels[top : top + rows, left : left + columns] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(
        rows, columns
    )
    return pixels


def read_label_studio(path: Path, url_prefix: str) -> Corrected:
    """Label Studio's JSON export: of each task the annotation that is ground truth, else the one changed last.

    Raises ValueError: the file is something else, with what it is or lacks.
    """
    tasks = read_json(path)
    if not isinstance(tasks, list) or not all(isinstance(one, dict) and "data" in one for one in tasks):
        raise ValueError(f"{path} is no list of tasks; export as 'JSON' (not JSON-MIN, CSV or COCO)")
    made = Corrected(images=[], labels=[])
    for number, task in enumerate(tasks):
        whose = f"{path}: task {task.get('id', number)}"
        try:
            chosen = _chosen(task, made.left_out)
            if chosen is None:
                continue
            address = next((v for v in task["data"].values() if isinstance(v, str)), None)
            name = file_name_of(task["data"].get("image") or address or "", url_prefix)
            annotated = _label_studio_image(chosen, name, made.left_out)
            if not annotated.height:  # nobody found anything; a prediction may know how large it is
                annotated.height, annotated.width = _size_of(task)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(f"{whose} cannot be read: {type(error).__name__}: {error}") from error
        made.images.append(annotated)
    return made


def _chosen(task: Mapping[str, Any], left_out: Counter[str]) -> list[Any] | None:
    """The regions of a task, or None where nobody annotated it."""
    annotations = task.get("annotations", task.get("completions", []))
    if annotations and not isinstance(annotations[0], dict):
        raise ValueError("its annotations are numbers; export with the annotations inside ('JSON')")
    good = [one for one in annotations if not one.get("was_cancelled") and not one.get("skipped")]
    if not good:
        left_out["tasks that nobody annotated" if not annotations else "tasks that were skipped"] += 1
        return None
    left_out["further annotations of a task"] += len(good) - 1
    best = max(good, key=lambda one: (bool(one.get("ground_truth")), str(one.get("updated_at", ""))))
    return list(best["result"])


def _size_of(task: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width as any region of the task has them, else 0."""
    answers = [
        one for key in ("annotations", "predictions") for one in task.get(key, []) if isinstance(one, dict)
    ]
    for region in (region for answer in answers for region in answer.get("result", [])):
        if "original_height" in region:
            return int(region["original_height"]), int(region["original_width"])
    return 0, 0


def _label_studio_image(regions: Sequence[Mapping[str, Any]], name: str, left_out: Counter[str]) -> Annotated:
    height = width = 0
    by_id: dict[str, Object] = {}
    objects: list[Object] = []
    labels = {
        one["id"]: one["value"]["labels"] for one in regions if one.get("type") == "labels" and "id" in one
    }
    for region in regions:
        kind, value = str(region.get("type", "")), region.get("value", {})
        shape = kind.removesuffix("labels")
        if shape not in ("rectangle", "polygon", "brush", "ellipse"):
            left_out[f"regions of kind {kind}"] += bool(kind != "labels")
            continue
        height, width = int(region["original_height"]), int(region["original_width"])
        if region.get("image_rotation", 0):
            raise ValueError(
                f"a region is on the image turned by {region['image_rotation']} degrees; turn it back there"
            )
        names = value.get(kind) or value.get("labels") or labels.get(region.get("id")) or []
        if not names:
            left_out["regions without a label"] += 1
            continue
        left_out["further labels of a region"] += len(names) - 1
        one = _label_studio_object(shape, value, names[0], height, width)
        parent = by_id.get(str(region.get("parentID", "")))
        if (
            parent is not None
            and parent.category == one.category
            and parent.polygons
            and one.polygons
            and not one.box
        ):
            parent.polygons += one.polygons
            continue
        by_id[str(region.get("id", len(by_id)))] = one
        objects.append(one)
    return Annotated(name, height, width, objects)


def _label_studio_object(shape: str, value: Mapping[str, Any], name: str, height: int, width: int) -> Object:
    across, down = width / 100.0, height / 100.0
    if shape == "polygon":
        corners = [v for x, y in value["points"] for v in (x * across, y * down)]
        if not corners:
            raise ValueError("a polygon has no points")
        return Object(name, polygons=[corners])
    if shape == "brush":
        return Object(name, pixels=brush_pixels(value["rle"], height=height, width=width))
    if shape == "ellipse":
        centre, radii = (
            (value["x"] * across, value["y"] * down),
            (value["radiusX"] * across, value["radiusY"] * down),
        )
        return Object(name, polygons=[_ellipse(centre, radii, float(value.get("rotation", 0)))])
    left, top = value["x"] * across, value["y"] * down
    box = (left, top, left + value["width"] * across, top + value["height"] * down)
    turned = float(value.get("rotation", 0)) % 360
    return Object(name, box=box, polygons=[_turned(box, turned, about_corner=True)] if turned else [])


def brush_pixels(rle: Sequence[int], *, height: int, width: int) -> np.ndarray:
    """A brush, bool [height, width], from Label Studio's stream of bits (label_studio.py says how it is made).

    Raises ValueError: the stream is cut short, or is of another size.
    """
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise ValueError("a brush's run lengths are cut short")
        return int(bits[at - count : at], 2)

    total, size = take(32), take(5) + 1
    if total != height * width * 4 or total > MOST_BRUSH_VALUES:
        raise ValueError(
            f"a brush has {total} values, but {height} x {width} pixels have {height * width * 4}"
        )
    lengths = [take(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        repeated = take(1)
        length = take(lengths[take(2)]) + 1
        if done + length > total:
            raise ValueError("a brush's run lengths go beyond the image")
        if repeated:
            values[done : done + length] = min(take(size), 255)
        else:
            values[done : done + length] = [min(take(size), 255) for _ in range(length)]
        done += length
    return values.reshape(height, width, 4)[:, :, 3] > 127


def _ellipse(centre: Sequence[float], radii: Sequence[float], degrees: float) -> list[float]:
    turn, points = math.radians(degrees), []
    for n in range(ELLIPSE_POINTS):
        angle = 2 * math.pi * n / ELLIPSE_POINTS
        x, y = radii[0] * math.cos(angle), radii[1] * math.sin(angle)
        points += [
            centre[0] + x * math.cos(turn) - y * math.sin(turn),
            centre[1] + x * math.sin(turn) + y * math.cos(turn),
        ]
    return points


def _turned(box: Sequence[float], degrees: float, *, about_corner: bool) -> list[float]:
    """Corners of a box turned clockwise about its middle (CVAT), or about its first corner (Label Studio)."""
    left, top, right, bottom = box
    x0, y0 = (left, top) if about_corner else ((left + right) / 2, (top + bottom) / 2)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    return [
        v
        for x, y in corners
        for v in (x0 + (x - x0) * cos - (y - y0) * sin, y0 + (x - x0) * sin + (y - y0) * cos)
    ]
