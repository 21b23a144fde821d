"""A training and a validation set of made pictures with nothing to warn of, and what a check says of them changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.training.data.coco_set import annotation
from tests.training.tiny_set import SMALLEST
from training.config import DEFAULT_CONFIG, TrainingConfig, load_config
from training.look.command import check

Document = dict[str, Any]
Change = Callable[[Document], Any]

NAMES = ("brick", "tile", "slab")
SIDE = 64
IMAGES = 6


def nothing(document: Document) -> None:
    """Leave a document as it is."""


class MadeSets:
    """Sets in `folder`/train and `folder`/val; every picture another, three objects to each, two with polygons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        random = np.random.default_rng(0)
        self.documents: dict[str, Document] = {}
        for part in ("train", "val"):
            (folder / part).mkdir(parents=True)
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for number in range(IMAGES):
                pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / f"{part}{number}.png")
                images.append(
                    {"id": number, "file_name": f"{part}{number}.png", "width": SIDE, "height": SIDE}
                )
                for category in (1, 2, 3):
                    box = [4.0 + number, 5.0 * category, 30.0, 24.0]
                    annotations.append(annotation(len(annotations) + 1, number, category, box))
            categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
            self.documents[part] = {"images": images, "annotations": annotations, "categories": categories}

    def config(self, *words: str, train: Change = nothing, val: Change = nothing) -> TrainingConfig:
        """Of the sets after these changes of their documents, bricks and tiles being set A."""
        for part, change in (("train", train), ("val", val)):
            document = json.loads(json.dumps(self.documents[part]))
            change(document)
            (self.folder / f"{part}.json").write_text(json.dumps(document))
        paths = [
            f"data.{part}_{key}={self.folder / part}{end}"
            for part in ("train", "val")
            for key, end in (("images", ""), ("annotations", ".json"))
        ]
        out = f"output.dir={self.folder / 'run'}"
        return load_config(DEFAULT_CONFIG, [*paths, "data.mask_classes=brick,tile", *SMALLEST, out, *words])

    def warnings(self, *words: str, train: Change = nothing, val: Change = nothing) -> list[str]:
        """What a check warns of."""
        return check(self.config(*words, train=train, val=val))
