"""Made-up COCO sets with objects of all sizes, crowds and ties of scores, and detections of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from model.classes import ClassTable
from training.evaluate.truth import GroundTruth, load_ground_truth

SIDE = 240
CLASSES = ClassTable(
    ids=(2, 3, 5, 7, 9), names=("ant", "bee", "cat", "dog", "eel"), has_mask=(True, True, False, False, False)
)
"""The last one has no objects."""


@dataclass
class RandomSet:
    """A COCO document, the truth as read from its file, and detections as COCO results."""

    document: dict[str, Any]
    truth: GroundTruth
    results: list[dict[str, Any]]


def ellipse(box: list[float]) -> dict[str, Any]:
    """Run lengths of the ellipse within a box [x, y, w, h]."""
    x, y, w, h = box
    angle = np.arange(24) * np.pi / 12
    points = np.stack([x + w / 2 + w / 2 * np.cos(angle), y + h / 2 + h / 2 * np.sin(angle)], axis=1)
    (mask,) = mask_utils.frPyObjects([points.flatten().tolist()], SIDE, SIDE)
    return dict(mask)


def text(mask: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(mask["size"]), "counts": mask["counts"].decode()}


def random_box(random: np.random.Generator) -> list[float]:
    """Of 4 to 150 pixels a side, so that all three size ranges occur."""
    w, h = np.exp(random.uniform(1.4, 5.0, 2))
    x, y = random.uniform(0, SIDE - np.array([w, h]))
    return [float(v) for v in (x, y, w, h)]


def random_set(
    folder: Path, seed: int, *, images: int = 10, crowds: bool = True, federated: bool = False
) -> RandomSet:
    """A set of `images` pictures in `folder`/truth.json; federated: as LVIS, without crowds."""
    random = np.random.default_rng(seed)
    ids = CLASSES.ids[:4]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def detect(image: int, category: int, box: list[float]) -> None:
        score = float(np.round(random.random(), 2))  # of which many are equal
        one = {"image_id": image, "category_id": category, "bbox": box, "score": score}
        results.append(one | {"segmentation": ellipse(box)})

    for image in range(1, images + 1):
        for _ in range(int(random.integers(0, 9))):
            box, category = random_box(random), int(random.choice(ids))
            mask = ellipse(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": float(mask_utils.area(mask)),
                    "iscrowd": int(crowds and not federated and random.random() < 0.15),
                    "segmentation": text(mask),
                }
            )
            for _ in range(int(random.integers(0, 5))):
                x, y, w, h = (
                    np.array(box) + random.normal(0, 0.1, 4) * np.array([*box[2:], *box[2:]])
                ).tolist()
                x, y, w, h = max(x, 0.0), max(y, 0.0), max(w, 2.0), max(h, 2.0)
                inside = [min(x, SIDE - 2.0), min(y, SIDE - 2.0), w, h]
                inside[2:] = min(w, SIDE - inside[0]), min(h, SIDE - inside[1])
                detect(image, category if random.random() < 0.8 else int(random.choice(ids)), inside)
        for _ in range(int(random.integers(0, 4))):
            detect(image, int(random.choice(ids)), random_box(random))
    entries: list[dict[str, Any]] = [
        {"id": image, "file_name": f"{image}.png", "height": SIDE, "width": SIDE}
        for image in range(1, images + 1)
    ]
    categories: list[dict[str, Any]] = [
        {"id": i, "name": name} for i, name in zip(CLASSES.ids, CLASSES.names, strict=True)
    ]
    if federated:
        for entry in entries:
            entry["neg_category_ids"] = [i for i in ids if random.random() < 0.3]
            entry["not_exhaustive_category_ids"] = [i for i in ids if random.random() < 0.3]
        for one, frequency in zip(categories, "rccfr", strict=True):
            one["frequency"] = frequency
    document = {"images": entries, "categories": categories, "annotations": annotations}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "truth.json").write_text(json.dumps(document))
    return RandomSet(document, load_ground_truth(folder / "truth.json", CLASSES), results)
