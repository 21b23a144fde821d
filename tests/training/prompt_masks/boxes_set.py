"""A small set of images and boxes, all bright, so that the mask of a box is the ellipse in it."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.pictures import encoded, exif

SIZES = [(128, 128), (200, 100), (60, 90)]
"""(width, height) of the images 1, 2, 3."""
POLYGON = [[10.0, 10.0, 60.0, 10.0, 60.0, 60.0]]


def boxes_document() -> dict[str, Any]:
    """Three images; of seven annotations one has a mask and one is a crowd region."""

    def annotation(number: int, image: int, bbox: list[float], **more: Any) -> dict[str, Any]:
        return {
            "id": number,
            "image_id": image,
            "category_id": 1 + number % 2,
            "bbox": bbox,
            "iscrowd": 0,
            **more,
        }

    return {
        "info": {"year": 2026, "note": "kept"},
        "licenses": [{"id": 4, "name": "kept too"}],
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": width, "height": height, "licence": 4}
            for number, (width, height) in enumerate(SIZES, start=1)
        ],
        "annotations": [
            annotation(1, 1, [10, 10, 80, 60], area=4800),
            annotation(2, 1, [10, 10, 50, 50], segmentation=POLYGON, area=1250, tag="a"),
            annotation(3, 2, [0, 0, 200, 100], segmentation=[], attributes={"occluded": True}),
            annotation(4, 2, [150.5, 20.25, 60, 70]),
            annotation(5, 3, [5, 5, 50, 30], segmentation=None),
            annotation(6, 3, [20, 20, 30, 30], iscrowd=1, segmentation={"size": [90, 60], "counts": [5400]}),
            annotation(7, 3, [30, 40, 20, 45]),
        ],
        "categories": [{"id": 1, "name": "round"}, {"id": 2, "name": "rounder", "supercategory": "x"}],
        "splits": {"unknown": ["key"]},
    }


def write_boxes_set(folder: Path, document: dict[str, Any] | None = None) -> list[str]:
    """`images/` and `boxes.json` in a folder; the words of a command that reads them and the segmenter in `tiny/`."""
    (folder / "images").mkdir()
    for number, size in enumerate(SIZES, start=1):
        (folder / "images" / f"{number}.png").write_bytes(encoded(Image.new("RGB", size, "white")))
    (folder / "boxes.json").write_text(json.dumps(document or boxes_document(), indent=1))
    named = {
        "--images": "images",
        "--annotations": "boxes.json",
        "--segmenter": "tiny",
        "--out": "masks.json",
    }
    return [word for option, name in named.items() for word in (option, str(folder / name))]


def write_turned(path: Path) -> None:
    """Image 2 as a camera stores it that was held upright: 100 x 200 pixels, to be turned by a quarter."""
    path.write_bytes(encoded(Image.new("RGB", (100, 200), "white"), "JPEG", exif=exif(6)))
