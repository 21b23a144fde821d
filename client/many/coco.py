"""Answers as COCO results, with the list of images beside that tells what the ids mean."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..prediction import coco_results
from .files import ImageFile, whole


def images_list_of(results: Path) -> Path:
    """Where the images and categories of a results file stand: results.json -> results.images.json."""
    return results.with_suffix(".images.json")


def write_coco(path: Path, answers: Iterable[tuple[ImageFile, Mapping[str, Any]]]) -> int:
    """Writes the results and the images list beside, each whole or not at all; returns how many detections.

    The list has `images` (id, file_name, height, width) and `categories` (id, name), as pycocotools' `COCO` reads it.

    Raises ValueError: masks as PNG.
    """
    images, categories, detections = [], {}, 0
    with whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write("[")
        for image, answer in answers:
            images.append({"id": image.image_id, "file_name": image.name, **answer["image"]})
            for result in coco_results(answer, image.image_id):
                categories[result["category_id"]] = result["category"]
                file.write((",\n" if detections else "\n") + json.dumps(result, separators=(",", ":")))
                detections += 1
        file.write("\n]\n")
        about = {
            "images": images,
            "categories": [{"id": number, "name": name} for number, name in sorted(categories.items())],
            "annotations": [],
        }
        with whole(images_list_of(path)) as unfinished_list:
            unfinished_list.write_text(json.dumps(about), encoding="utf-8")
    return detections
