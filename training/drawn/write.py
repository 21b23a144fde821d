"""Writes a drawn data set: PNG images and ordinary COCO files, read by the same code as any other data.

The folder gets `train/*.png`, `val/*.png`, `train.json`, `val.json`, `settings.json` and what its kind adds. It is
written whole or not at all.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from model.dataclass_io import require_at_least
from training.progress import progress

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
IntBox = tuple[int, int, int, int]
SPLITS = ("train", "val")
SETTINGS_FILE = "settings.json"
IMAGES_A_PROCESS = 64
"""Fewer are drawn before a further process would have started."""


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """How many images of which side (pixels), from which seed. ValueError where a number is out of range."""

    train: int
    val: int = 200
    seed: int = 0
    size: int = 128
    largest: ClassVar[int] = 2048

    def __post_init__(self) -> None:
        for name in SPLITS:
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; at least one image is needed: give 1 or more"
                )
        require_at_least(0, seed=self.seed)
        if not 64 <= self.size <= self.largest:
            raise ValueError(f"size is {self.size}; the images' side must be 64 to {self.largest} pixels")


class Drawn(NamedTuple):
    """An image, uint8 [h, w, 3], its annotations (see `annotation`), and what the summary of its kind reads."""

    pixels: NDArray[np.uint8]
    annotations: list[dict[str, Any]]
    about: Any = None


class Written(NamedTuple):
    """COCO's records of one image, those of its objects still without ids; `about` as in `Drawn`."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]
    about: Any


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What one kind of drawn set has of its own.

    `defaults` is its configuration; `draw` makes an image of (configuration, name of the split, number), the same for
    the same arguments; `document` is the COCO file of (configuration, split, images, annotations); `sources` are the
    files that the pixels follow from.
    """

    defaults: SetConfig
    draw: Callable[[SetConfig, str, int], Drawn]
    document: Callable[[SetConfig, str, list[Any], list[Any]], dict[str, Any]]
    sources: Sequence[str]
    summary: Callable[[str, Sequence[Written]], str] | None = None
    more_files: Mapping[str, str] = field(default_factory=dict)


_Task = tuple[Callable[[SetConfig, str, int], Drawn], SetConfig, Path, str, int]
"""How one image is drawn, of which configuration, the folder of its PNG, name of the split, number."""


def mask_box(mask: Bools) -> IntBox:
    """The pixels' tight box (left, top, right, bottom), the last two excluded; of an empty mask all 0."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def annotation(
    mask: Bools, category_id: int, *, crowd: bool = False, segmentation: Any = None
) -> dict[str, Any]:
    """COCO's record of an object, without ids; its mask as compressed run lengths where no form of it is given."""
    left, top, right, bottom = mask_box(mask)
    if segmentation is None:
        encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentation = {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}
    return {
        "category_id": category_id,
        "bbox": [left, top, right - left, bottom - top],
        "area": int(mask.sum()),
        "iscrowd": int(crowd),
        "segmentation": segmentation,
    }


def write_set(kind: Kind, out: Path, config: SetConfig, *, workers: int | None = None) -> bool:
    """Write a data set to `out`; False where it already lies there, drawn from the same settings.

    A set that an earlier run drew from other settings is replaced. ValueError where `out` is anything else. `workers`
    processes draw; default: as many as this process may use processors. Their number changes no pixel.
    """
    digest = hashlib.sha256(b"".join(Path(source).read_bytes() for source in (__file__, *kind.sources)))
    settings = {**asdict(config), "drawing": digest.hexdigest()}
    file = out / SETTINGS_FILE
    if file.is_file() and json.loads(file.read_text()) == settings:
        return False
    if out.exists() and not file.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} exists and is no drawn data set (it has no {SETTINGS_FILE}), so it is not replaced; "
            "give another --out or remove it"
        )
    unfinished = out.parent / f".{out.name}.unfinished-{os.getpid()}"
    replaced = out.parent / f".{out.name}.replaced-{os.getpid()}"
    try:
        tasks: list[_Task] = []
        for split in SPLITS:
            (unfinished / split).mkdir(parents=True)
            count = getattr(config, split)
            tasks += [(kind.draw, config, unfinished / split, split, index) for index in range(count)]
        written = list(progress(_written(tasks, workers), "drawing", total=len(tasks)))
        for split, part in (("train", written[: config.train]), ("val", written[config.train :])):
            records = [(of.image["id"], record) for of in part for record in of.annotations]
            annotations = [
                {"id": number, "image_id": image_id, **record}
                for number, (image_id, record) in enumerate(records, start=1)
            ]
            document = kind.document(config, split, [of.image for of in part], annotations)
            (unfinished / f"{split}.json").write_text(json.dumps(document))
            if kind.summary is not None:
                print(kind.summary(split, part))
        for name, text in kind.more_files.items():
            (unfinished / name).write_text(text)
        (unfinished / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n")
        if out.exists():
            out.rename(replaced)
        unfinished.rename(out)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def _write_image(task: _Task) -> Written:
    draw, config, folder, split, number = task
    drawn = draw(config, split, number)
    name, (height, width) = f"{number:06d}.png", drawn.pixels.shape[:2]
    Image.fromarray(drawn.pixels).save(folder / name, compress_level=1)
    image = {"id": number + 1, "file_name": name, "width": width, "height": height}
    return Written(image, drawn.annotations, drawn.about)


def _written(tasks: list[_Task], workers: int | None) -> Iterator[Written]:
    """Results in the order of the tasks."""
    if workers is None:
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(processors, 1 + len(tasks) // IMAGES_A_PROCESS)
    if workers == 1:
        yield from map(_write_image, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_write_image, tasks, chunksize=16)
