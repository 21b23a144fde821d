"""LVIS v1: 1 203 classes on COCO 2017's images, as COCO files that training reads.

Its images have a `coco_url` and no `file_name`, and its val has images of both folders, train2017 and val2017;
its annotations have no `iscrowd`. All else is COCO's and stays, also `neg_category_ids` and
`not_exhaustive_category_ids`: LVIS is federated, an image being searched for some of the classes only. Evaluation
goes by these two lists, at 300 detections an image, as LVIS's own; training does not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from training.data.annotations import is_id, read_annotations, refuse
from training.datasets.files import CocoWriter, annotations_of

PARTS = ("train", "val")


def write_lvis(annotations: Path, out: Path) -> list[str]:
    """Convert lvis_v1_train.json and lvis_v1_val.json of the folder `annotations` to `out`/train.json and val.json.

    File names become those below COCO's folder: `train2017/000000000009.jpg`.

    Returns:
        A line for each file written.

    Raises:
        ValueError: a file is missing or is not LVIS v1 (images without `coco_url`, categories without a name).
    """
    lines = []
    for part in PARTS:
        source = annotations / f"lvis_v1_{part}.json"
        document = read_annotations(source)
        with CocoWriter(
            out / f"{part}.json", document["categories"], description=f"LVIS v1 {part}"
        ) as writer:
            for image in _images(document, source):
                writer.add_image(image)
            for annotation in annotations_of(document, source):
                writer.add({"iscrowd": 0, **annotation})
        lines.append(str(writer))
    return lines


def _images(document: Mapping[str, Any], source: Path) -> list[Mapping[str, Any]]:
    images: list[Mapping[str, Any]] = []
    problems = []
    for number, image in enumerate(document["images"], start=1):
        if not isinstance(image, Mapping) or not is_id(image.get("id")):
            problems.append(f"image number {number}: {image!r:.100}; expected a whole number 'id'")
            continue
        name = _below_coco(image.get("coco_url"))
        if name is None:
            problems.append(
                f"image {image['id']}: coco_url {image.get('coco_url')!r:.100}; expected an address that ends in "
                "train2017/NAME.jpg or val2017/NAME.jpg (LVIS v1; v0.5 has a file_name instead)"
            )
            continue
        images.append({**image, "file_name": name})
    refuse(str(source), problems)
    return images


def _below_coco(address: Any) -> str | None:
    """ "train2017/NAME.jpg" of an address; None where it is not one of COCO 2017's."""
    if not isinstance(address, str):
        return None
    parts = urlsplit(address).path.split("/")[-2:]
    return "/".join(parts) if parts[0] in ("train2017", "val2017") and parts[-1] else None
