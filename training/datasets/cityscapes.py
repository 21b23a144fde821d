"""Cityscapes (Cordts et al., 2016), fine annotations: street scenes with the instances of 8 classes, as COCO files.

Its site wants a login, so the archives gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip are fetched by hand and
unpacked below one folder:

    gtFine/{train,val}/CITY/CITY_NUMBER_NUMBER_gtFine_instanceIds.png
    leftImg8bit/{train,val}/CITY/CITY_NUMBER_NUMBER_leftImg8bit.png

A pixel of the former has the id of a label, or label * 1000 + number where it is one instance. An instance becomes an
object with its exact mask; a label of one of the 8 classes without a number is a group, which becomes a crowd. Category
ids are Cityscapes' label ids. An image's regions of no evaluated label are kept as its `void`, run lengths or null,
by which `training.evaluate --cityscapes` judges.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_utils

from training.data.findings import refuse
from training.datasets.files import CocoWriter
from training.progress import progress

CLASSES = {
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""Name of each label whose instances are evaluated."""
VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""Labels that no evaluation counts: unlabeled to ground, parking, rail track, guard rail, bridge, tunnel, polegroup,
and groups of caravans or trailers (one of them alone is not void in Cityscapes' own code)."""
_NUMBERED = (*CLASSES, 29, 30)
"""Labels that have instances."""
_LABELS = 34
PARTS = ("train", "val")
_TRUTH, _IMAGE = "_gtFine_instanceIds.png", "_leftImg8bit.png"


def write_cityscapes(root: Path, out: Path) -> list[str]:
    """Convert gtFine/train and gtFine/val below `root` to `out`/train.json and val.json.

    File names are those below leftImg8bit/train or val: `aachen/aachen_000000_000019_leftImg8bit.png`.

    Returns:
        A line for each file written.

    Raises:
        ValueError: no annotation is there, an image has none beside it, or a picture has no instance ids.
    """
    lines = []
    for part in PARTS:
        truths = sorted((root / "gtFine" / part).glob(f"*/*{_TRUTH}"))
        if not truths:
            raise ValueError(
                f"{root / 'gtFine' / part}: no CITY/*{_TRUTH}; unpack gtFine_trainvaltest.zip in {root}"
            )
        images = root / "leftImg8bit" / part
        names = [f"{path.parent.name}/{path.name.removesuffix(_TRUTH)}{_IMAGE}" for path in truths]
        refuse(
            str(images),
            [
                f"no {name}, of which there is an annotation; unpack leftImg8bit_trainvaltest.zip in {root}"
                for name in names
                if not (images / name).is_file()
            ],
        )
        categories = [{"id": label, "name": name} for label, name in CLASSES.items()]
        with CocoWriter(out / f"{part}.json", categories, description=f"Cityscapes {part}") as writer:
            pairs: Iterable[tuple[int, tuple[Path, str]]] = enumerate(
                zip(truths, names, strict=True), start=1
            )
            for image_id, (path, name) in progress(pairs, f"converting {part}", total=len(truths)):
                _add_image(writer, image_id, name, _instance_ids(path), path)
        lines.append(str(writer))
    return lines


def _add_image(writer: CocoWriter, image_id: int, name: str, ids: NDArray[np.int64], path: Path) -> None:
    height, width = ids.shape
    flat = ids.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    ends = np.append(starts[1:], flat.size)
    of_run = flat[starts]
    found = np.unique(of_run).tolist()
    strangers = [one for one in found if not (one < _LABELS or one // 1000 in _NUMBERED)]
    if strangers:
        raise ValueError(
            f"{path}: has the ids {strangers[:5]}; expected labels 0 to {_LABELS - 1} and instances "
            f"{_NUMBERED[0]}000 to {max(_NUMBERED)}999"
        )
    void = np.isin(of_run, VOID)
    entry = {"id": image_id, "file_name": name, "width": width, "height": height}
    writer.add_image(
        entry | {"void": _text(_mask(starts[void], ends[void], height, width)) if void.any() else None}
    )
    for one in found:
        label = one if one < 1000 else one // 1000
        if label not in CLASSES:
            continue
        mine = of_run == one
        mask = _mask(starts[mine], ends[mine], height, width)
        writer.add(
            {
                "image_id": image_id,
                "category_id": label,
                "bbox": [int(side) for side in mask_utils.toBbox(mask)],
                "area": int((ends - starts)[mine].sum()),
                "iscrowd": int(one < 1000),
                "segmentation": _text(mask),
            }
        )


def _mask(starts: NDArray[np.int64], ends: NDArray[np.int64], height: int, width: int) -> dict[str, Any]:
    """The mask of the pixels, counted down the columns, from each start up to its end; these rise."""
    apart = starts[1:] != ends[:-1]
    first, last = starts[np.append(True, apart)], ends[np.append(apart, True)]
    edges = np.append(np.stack([first, last], axis=1), height * width)
    counts = np.diff(edges, prepend=0).tolist()
    if not counts[-1]:  # the mask has the last pixel
        counts.pop()
    return dict(mask_utils.frPyObjects({"size": [height, width], "counts": counts}, height, width))


def _text(mask: dict[str, Any]) -> dict[str, Any]:
    return {"size": [int(side) for side in mask["size"]], "counts": mask["counts"].decode("ascii")}


def _instance_ids(path: Path) -> NDArray[np.int64]:
    """The ids of a picture's pixels, [H, W]; ValueError where it is no picture of one channel of whole numbers."""
    try:
        with Image.open(path) as picture:
            mode, ids = picture.mode, np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected a 16-bit PNG") from error
    if mode not in ("I;16", "L"):
        raise ValueError(f"{path}: is a picture of mode {mode}; expected one channel of 16 bits (mode I;16)")
    return ids.astype(np.int64)
