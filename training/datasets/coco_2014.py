"""COCO 2014 as the paper uses it: trainval35k (train and valminusminival) and minival (5 000 images of val).

COCO 2017 is the same images under other names: its val is minival, its train is trainval35k (README of the
paper's own code, lib/datasets/data). So the list of minival is taken from instances_val2017.json.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.data.annotations import check_image_entries, read_annotations
from training.datasets.files import CocoWriter, annotations_of, image_ids

COCO_NAMES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's 80 classes by ascending category id."""


def write_2014(annotations: Path, minival: Path, out: Path) -> list[str]:
    """Write instances_trainval35k.json, instances_valminusminival2014.json and instances_minival2014.json to `out`.

    File names in them begin with `train2014/` or `val2014/`, so that one folder of images serves all.

    Args:
        annotations: folder of instances_train2014.json and instances_val2014.json.
        minival: instances_val2017.json, instances_minival2014.json or a text file of ids.

    Returns:
        A line for each file written.

    Raises:
        ValueError: a file is missing or no COCO file, the two differ in their categories, or minival is not
            part of val2014.
    """
    wanted = image_ids(minival)
    train, val = (_document(annotations / f"instances_{part}2014.json") for part in ("train", "val"))
    if train["categories"] != val["categories"]:
        raise ValueError(
            f"{annotations}: instances_train2014.json and instances_val2014.json have other categories"
        )
    strangers = wanted - {image["id"] for image in val["images"]}
    if strangers:
        raise ValueError(
            f"{minival}: {len(strangers)} of its {len(wanted)} images are not in instances_val2014.json, "
            f"such as {min(strangers)}"
        )
    of_train, of_val = ({image["id"] for image in document["images"]} for document in (train, val))
    parts = {
        "trainval35k": (of_train, of_val - wanted),
        "valminusminival2014": (set(), of_val - wanted),
        "minival2014": (set(), wanted),
    }
    lines = []
    for name, (train_ids, val_ids) in parts.items():
        path = out / f"instances_{name}.json"
        with CocoWriter(path, train["categories"], description=f"COCO 2014 {name}") as writer:
            _copy(train, "train2014", writer, train_ids)
            _copy(val, "val2014", writer, val_ids)
        lines.append(str(writer))
    return lines


def _document(path: Path) -> Mapping[str, Any]:
    document = read_annotations(path)
    check_image_entries(document["images"], str(path))
    return document


def _copy(document: Mapping[str, Any], folder: str, writer: CocoWriter, ids: set[int]) -> None:
    """The images of these ids with their annotations, which keep their own ids."""
    for image in document["images"]:
        if image["id"] in ids:
            writer.add_image({**image, "file_name": f"{folder}/{image['file_name']}"})
    for annotation in annotations_of(document, Path(f"instances_{folder}.json")):
        if annotation["image_id"] in ids:
            writer.add(annotation)
