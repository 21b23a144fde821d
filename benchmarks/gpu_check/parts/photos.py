"""A COCO set of 640 x 480 JPEGs with drawn objects, for the speed of training: what it costs is that of photographs."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.machine import usable_cores
from training.drawn.shapes_drawing import draw
from training.drawn.shapes_forms import CLASSES

WIDTH, HEIGHT = 640, 480
QUALITY = 90


def photos(folder: Path, count: int, *, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Writes `train/*.jpg` and `train.json` of `count` images below `folder`, unless they lie there; the folder.

    A drawing of the image's height with noise beside it, for drawings are square.
    """
    path = folder / "train.json"
    if path.is_file() and len(json.loads(path.read_text(encoding="utf-8"))["images"]) >= count:
        return folder
    (folder / "train").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(usable_cores(), multiprocessing.get_context("fork")) as drawers:
        drawn = list(
            drawers.map(
                _draw, [str(folder)] * count, range(count), [height] * count, [width] * count, chunksize=4
            )
        )
    annotations = [annotation for one in drawn for annotation in one]
    content = {
        "images": [
            {"id": i + 1, "file_name": f"{i:06d}.jpg", "width": width, "height": height} for i in range(count)
        ],
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
        "categories": [{"id": one.id, "name": one.name} for one in CLASSES],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def _draw(folder: str, index: int, height: int, width: int) -> list[dict[str, Any]]:
    """Writes one image; its annotations."""
    drawing = draw(seed=0, split=0, index=index, side=height, crowds=False)
    noise = np.random.default_rng(index).integers(
        0, 256, (height // 8, (width - height) // 8, 3), dtype=np.uint8
    )
    beside = np.asarray(Image.fromarray(noise).resize((width - height, height), Image.Resampling.BICUBIC))
    pixels = np.concatenate([drawing.pixels, beside], axis=1)
    Image.fromarray(pixels).save(Path(folder) / "train" / f"{index:06d}.jpg", quality=QUALITY)
    found = []
    for one in drawing.objects:
        mask = np.zeros((height, width), dtype=np.uint8, order="F")
        mask[:, :height] = one.mask
        encoded = coco_mask.encode(mask)
        found.append(
            {
                "image_id": index + 1,
                "category_id": one.category.id,
                "bbox": [float(value) for value in coco_mask.toBbox(encoded)],
                "area": int(one.mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": encoded["counts"].decode("ascii")},
            }
        )
    return found
