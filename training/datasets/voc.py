"""PASCAL VOC (devkit of 2007 to 2012) as COCO files: boxes of Annotations/, masks of SegmentationObject/.

The n-th object of an annotation has the pixels of palette index n; index 0 is background and 255 the border
around every object (devkit), which belongs to no mask here. VOC's boxes count pixels from 1 and include their
last pixel. Objects marked difficult are not judged in VOC: they become crowd regions (COCO's `iscrowd`), which
are neither learnt nor judged.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_utils

from training.data.annotations import Tally, refuse
from training.datasets.files import CocoWriter

Names = Literal["voc", "coco"]
ImageSet = Literal["Segmentation", "Main"]
BORDER = 255

VOC_TO_COCO: dict[str, str] = {
    "aeroplane": "airplane", "bicycle": "bicycle", "bird": "bird", "boat": "boat", "bottle": "bottle",
    "bus": "bus", "car": "car", "cat": "cat", "chair": "chair", "cow": "cow", "diningtable": "dining table",
    "dog": "dog", "horse": "horse", "motorbike": "motorcycle", "person": "person",
    "pottedplant": "potted plant", "sheep": "sheep", "sofa": "couch", "train": "train", "tvmonitor": "tv",
}  # fmt: skip
"""VOC's 20 classes in the order of their palette indices 1 to 20, which become their category ids; COCO's names."""


@dataclass(frozen=True, kw_only=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]  # x, y, width, height, pixels from 0
    difficult: bool


def write_voc(
    root: Path, out: Path, *, image_set: ImageSet = "Segmentation", names: Names = "voc"
) -> list[str]:
    """Convert the devkit's folder `root` (VOCdevkit/VOC2012) to `out`/train.json and val.json.

    Args:
        image_set: "Segmentation": the images with masks, 1 464 and 1 449 in VOC 2012. "Main": all images with
            boxes, of which those of Segmentation have masks.
        names: classes spelled as VOC does, or as COCO does.

    Returns:
        Lines on each file written and on what could not be used.

    Raises:
        ValueError: a list, annotation or picture is missing or broken, a class is unknown, a picture of
            segmentations has no palette or another size than its image; each with the file.
    """
    categories = [
        {"id": number, "name": coco if names == "coco" else voc, "voc_name": voc}
        for number, (voc, coco) in enumerate(VOC_TO_COCO.items(), start=1)
    ]
    lines = []
    for part in ("train", "val"):
        stems = _stems(root / "ImageSets" / image_set / f"{part}.txt")
        tally, problems = Tally(), []
        with CocoWriter(out / f"{part}.json", categories, description=f"PASCAL VOC {part}") as writer:
            for image_id, stem in zip(_ids(stems), stems, strict=True):
                try:
                    _add_image(root, stem, image_id, writer, tally, masks_needed=image_set == "Segmentation")
                except ValueError as error:
                    problems.append(str(error))
            refuse(str(root), problems)
        lines.append(str(writer))
        lines += [f"  {finding}" for finding in tally.findings()]
    return lines


def _stems(path: Path) -> list[str]:
    """The images of a list; in lists of a class a mark follows the name, which is passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read the list of images {path}: {error.strerror}") from error
    stems = [line.split()[0] for line in lines if line.strip()]
    if not stems:
        raise ValueError(f"{path}: lists no image")
    return stems


def _ids(stems: Sequence[str]) -> list[int]:
    """2007_000027 -> 2007000027; numbers from 1 where a name has other signs than digits and one underscore."""
    plain = [stem.replace("_", "", 1) for stem in stems]
    if all(one.isdecimal() for one in plain) and len({int(one) for one in plain}) == len(stems):
        return [int(one) for one in plain]
    return list(range(1, len(stems) + 1))


def _add_image(
    root: Path, stem: str, image_id: int, writer: CocoWriter, tally: Tally, *, masks_needed: bool
) -> None:
    path = root / "Annotations" / f"{stem}.xml"
    file_name, (height, width), objects = _read_annotation(path)
    instances = _read_indices(root / "SegmentationObject" / f"{stem}.png", (height, width), masks_needed)
    classes = _read_indices(root / "SegmentationClass" / f"{stem}.png", (height, width), False)
    writer.add_image({"id": image_id, "file_name": file_name, "width": width, "height": height})
    for number, one in enumerate(objects, start=1):
        where = f"object {number} ({one.name}) of {stem}"
        mask = None if instances is None else _mask(instances, classes, number, one, tally, where)
        x, y, w, h = one.box
        annotation: dict[str, Any] = {
            "image_id": image_id,
            "category_id": list(VOC_TO_COCO).index(one.name) + 1,
            "bbox": [x, y, w, h],
            "area": float(w * h) if mask is None else float(mask.sum()),
            "iscrowd": int(one.difficult),
            "segmentation": [] if mask is None else _run_lengths(mask),
        }
        writer.add(annotation)
    if instances is not None:
        for extra in sorted(
            set(np.unique(instances).tolist()) - {0, BORDER} - set(range(1, len(objects) + 1))
        ):
            words = f"index {extra} in {stem}.png; {path.name} has {len(objects)} objects"
            tally.add("mask without an object in the annotation", "left out", words)


def _mask(
    instances: NDArray[np.uint8],
    classes: NDArray[np.uint8] | None,
    number: int,
    one: _Object,
    tally: Tally,
    where: str,
) -> NDArray[np.bool_] | None:
    """Pixels of the n-th object; None, counted, where it has none or they are of another class."""
    mask = instances == number
    if not mask.any():
        tally.add("object without a pixel in SegmentationObject", "kept without its mask", where)
        return None
    if classes is not None:
        inside = classes[mask]
        counts = np.bincount(inside[(inside != 0) & (inside != BORDER)], minlength=1)
        index = list(VOC_TO_COCO).index(one.name) + 1
        if int(counts.argmax()) != index:
            words = f"{where}: index {int(counts.argmax())} in SegmentationClass; expected {index}"
            tally.add("mask of another class in SegmentationClass", "kept without its mask", words)
            return None
    return mask


def _run_lengths(mask: NDArray[np.bool_]) -> Mapping[str, Any]:
    encoded = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def _read_indices(path: Path, size: tuple[int, int], needed: bool) -> NDArray[np.uint8] | None:
    """Palette indices uint8 [H, W] of a picture; None where it is not there and not needed."""
    if not path.is_file():
        if needed:
            raise ValueError(f"{path}: no such picture of segmentations, though its image is in the list")
        return None
    try:
        with Image.open(path) as picture:
            mode, indices = picture.mode, np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected a PNG with a palette") from error
    if mode not in ("P", "L"):
        raise ValueError(
            f"{path}: is a picture of mode {mode}; expected palette indices (mode P), not colours"
        )
    if indices.shape != size:
        raise ValueError(
            f"{path}: is {indices.shape[1]} x {indices.shape[0]}; expected {size[1]} x {size[0]} as its annotation says"
        )
    return indices.astype(np.uint8)


def _read_annotation(path: Path) -> tuple[str, tuple[int, int], list[_Object]]:
    """(file name of the image, (height, width), objects) of an XML file of Annotations/."""
    try:
        document = ElementTree.parse(path).getroot()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not valid XML ({error})") from error
    height, width = (int(_number(document, f"size/{side}", path)) for side in ("height", "width"))
    objects = []
    for number, element in enumerate(document.findall("object"), start=1):
        name = _text(element, "name", path)
        if name not in VOC_TO_COCO:
            raise ValueError(f"{path}: object {number} is called {name!r}; expected one of VOC's 20 classes")
        # The box of the object itself: its parts (head, hand, foot) have boxes of their own further down.
        x0, y0, x1, y1 = (
            _number(element, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = (element.findtext("difficult") or "0").strip() == "1"
        objects.append(
            _Object(name=name, box=(x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1), difficult=difficult)
        )
    return _text(document, "filename", path), (height, width), objects


def _text(element: ElementTree.Element, key: str, path: Path) -> str:
    text = (element.findtext(key) or "").strip()
    if not text:
        raise ValueError(f"{path}: no <{key.replace('/', '><')}> in <{element.tag}>")
    return text


def _number(element: ElementTree.Element, key: str, path: Path) -> float:
    text = _text(element, key, path)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{path}: <{key.replace('/', '><')}> is {text!r}; expected a number")
    return number
