"""Corrected annotations -> a COCO file, with the ids of an earlier one."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..many.files import read_json
from .corrected import Annotated, Corrected, Object


def write_coco_set(corrected: Corrected, path: Path, like: Path | None) -> int:
    """Writes COCO annotations; returns how many objects.

    `like` is a COCO file whose ids of images (by file name, or its last part) and of categories (by name) are taken, as
    that of the last training; what it does not have gets ids behind its own.

    Raises ValueError: two images of one name, or `like` is not as COCO has it.
    """
    about = read_json(like) if like is not None else {}
    try:
        categories = {str(one["name"]): dict(one) for one in about.get("categories", [])}
        known = {str(one["file_name"]): dict(one) for one in about.get("images", [])}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{like} is not as COCO has it: {type(error).__name__} {error}") from error
    short = Counter(Path(name).name for name in known)
    by_last = {Path(name).name: one for name, one in known.items() if short[Path(name).name] == 1}
    names = [*corrected.labels, *(one.category for image in corrected.images for one in image.objects)]
    for name in dict.fromkeys(names):
        number = max((int(one["id"]) for one in categories.values()), default=0) + 1
        categories.setdefault(name, {"id": number, "name": name, "supercategory": ""})
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    used: dict[Any, str] = {}
    twice = [name for name, count in Counter(one.file_name for one in corrected.images).items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} images are there twice, {twice[0]} is one; export each once")
    next_id = max((int(one["id"]) for one in known.values()), default=0) + 1
    for image in corrected.images:
        found = known.get(image.file_name) or by_last.get(Path(image.file_name).name)
        entry = {"id": next_id, "file_name": image.file_name} if found is None else found
        next_id += found is None
        if image.height:  # where nothing is in the image, Label Studio does not say how large it is
            entry |= {"height": image.height, "width": image.width}
        if used.setdefault(entry["id"], image.file_name) != image.file_name or entry in images:
            raise ValueError(
                f"{used[entry['id']]} and {image.file_name} are both image {entry['id']}; export one of them"
            )
        images.append(entry)
        for one in image.objects:
            number = len(annotations) + 1
            annotations.append(
                {"id": number, "image_id": entry["id"], "category_id": categories[one.category]["id"]}
            )
            annotations[-1] |= _geometry(one, image)
    content = {"images": images, "categories": list(categories.values()), "annotations": annotations}
    path.write_text(json.dumps(content), encoding="utf-8")
    return len(annotations)


def _geometry(one: Object, image: Annotated) -> dict[str, Any]:
    if one.pixels is not None:
        rows, columns = np.flatnonzero(one.pixels.any(1)), np.flatnonzero(one.pixels.any(0))
        box: list[float] = [0, 0, 0, 0]
        if len(rows):
            box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
        flat = np.concatenate([[False], one.pixels.T.ravel()])
        edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]), [one.pixels.size]])
        counts = [int(run) for run in np.diff(edges)]
        segmentation: Any = {"size": [image.height, image.width], "counts": counts}
        return {
            "bbox": box,
            "area": int(one.pixels.sum()),
            "segmentation": segmentation,
            "iscrowd": int(one.crowd),
        }
    if one.polygons:
        xs, ys = ([v for part in one.polygons for v in part[place::2]] for place in (0, 1))
        sides = (min(xs), min(ys), max(xs), max(ys))
        area = sum(_area(part) for part in one.polygons)
    else:
        assert one.box is not None
        sides = one.box
        area = (sides[2] - sides[0]) * (sides[3] - sides[1])
    box = [round(v, 2) for v in (sides[0], sides[1], sides[2] - sides[0], sides[3] - sides[1])]
    made = {"bbox": box, "area": round(area, 2), "iscrowd": int(one.crowd)}
    return made | (
        {"segmentation": [[round(v, 2) for v in part] for part in one.polygons]} if one.polygons else {}
    )


def _area(points: Sequence[float]) -> float:
    x, y = np.array(points[::2]), np.array(points[1::2])
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
