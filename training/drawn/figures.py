"""Writes the drawn stick figures: PNG images and COCO files with masks and keypoints, read as any other data.

`python -m training.drawn.figures --out build/figures` gives `train/*.png`, `val/*.png`, `train.json`, `val.json` and
`settings.json`. What is drawn is told in `training/drawn/figures_drawing.py`. The folder is written whole or not at
all.
"""

import argparse
import hashlib
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from training.drawn import figures_drawing
from training.drawn.figures_drawing import CATEGORIES, NAMES, SKELETON, Drawn, draw, mask_box
from training.progress import progress

SPLITS = ("train", "val")
SETTINGS_FILE = "settings.json"


@dataclass(frozen=True, kw_only=True)
class FiguresConfig:
    """How many images of which side (pixels), from which seed. ValueError where a number is out of range."""

    train: int = 2000
    val: int = 200
    seed: int = 0
    size: int = 128

    def __post_init__(self) -> None:
        if min(self.train, self.val) < 1 or self.seed < 0:
            raise ValueError(
                f"train is {self.train}, val {self.val}, seed {self.seed}; give 1 or more, 1 or more, 0 or more"
            )
        if not 64 <= self.size <= 1024:
            raise ValueError(f"size is {self.size}; the images' side must be 64 to 1024 pixels")


def annotation(drawn: Drawn) -> dict[str, Any]:
    """COCO's record of an object, without its ids. Keypoints are counted in whole pixels from 0, as COCO does."""
    left, top, right, bottom = mask_box(drawn.mask)
    encoded = coco_mask.encode(np.asfortranarray(drawn.mask.astype(np.uint8)))
    record: dict[str, Any] = {
        "category_id": drawn.category_id,
        "bbox": [left, top, right - left, bottom - top],
        "area": int(drawn.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(drawn.mask.shape), "counts": encoded["counts"].decode("ascii")},
    }
    if drawn.keypoints is not None:
        flat: list[float] = []
        for x, y, visible in drawn.keypoints.tolist():
            flat += [round(x - 0.5, 2), round(y - 0.5, 2), int(visible)] if visible else [0, 0, 0]
        record |= {"keypoints": flat, "num_keypoints": sum(v > 0 for v in flat[2::3])}
    return record


def write_figures(out: Path, config: FiguresConfig) -> bool:
    """Write the data set to `out`; False where it already lies there, drawn from the same settings.

    A set that was drawn from other settings is replaced. ValueError where `out` is anything else.
    """
    sources = (Path(__file__), Path(figures_drawing.__file__))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    settings = {**asdict(config), "drawing": digest}
    file = out / SETTINGS_FILE
    if file.is_file() and json.loads(file.read_text()) == settings:
        return False
    if out.exists() and not file.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} exists and is no drawn data set (it has no {SETTINGS_FILE}), so it is not replaced; give another "
            "--out or remove it"
        )
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for split, name in enumerate(SPLITS):
            count = getattr(config, name)
            (unfinished / name).mkdir(parents=True)
            document = _written(unfinished / name, split, count, config)
            (unfinished / f"{name}.json").write_text(json.dumps(document))
        (unfinished / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n")
        shutil.rmtree(out, ignore_errors=True)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def _written(folder: Path, split: int, count: int, config: FiguresConfig) -> dict[str, Any]:
    """The images of one split, written to `folder`, and their COCO document."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in progress(range(count), f"drawing {SPLITS[split]}", unit="images", total=count):
        pixels, objects = draw(seed=config.seed, split=split, index=index, side=config.size)
        file_name = f"{index:06d}.png"
        Image.fromarray(pixels).save(folder / file_name, compress_level=1)
        images.append({"id": index + 1, "file_name": file_name, "width": config.size, "height": config.size})
        for drawn in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation(drawn)})
    numbers = [[NAMES.index(one) + 1, NAMES.index(other) + 1] for one, other in SKELETON]
    categories: list[dict[str, Any]] = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    categories[0] |= {"keypoints": list(NAMES), "skeleton": numbers}
    return {"images": images, "annotations": annotations, "categories": categories}


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 where the data set lies there in the end."""
    defaults = FiguresConfig()
    parser = argparse.ArgumentParser(
        prog="python -m training.drawn.figures",
        description="Draw stick figures with keypoints.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("build/figures"), help="folder to write")
    parser.add_argument("--train", type=int, default=defaults.train, help="training images")
    parser.add_argument("--val", type=int, default=defaults.val, help="validation images")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="same seed, same pixels")
    parser.add_argument("--size", type=int, default=defaults.size, help="side of an image")
    options = parser.parse_args(arguments)
    try:
        config = FiguresConfig(train=options.train, val=options.val, seed=options.seed, size=options.size)
        drawn = write_figures(options.out, config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {'written' if drawn else 'already drawn from the same settings, nothing to do'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
