"""A COCO set of a few small pictures, the changes that train on it within seconds, and what a run has written."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.checkpoint import load_checkpoint
from tests.training.data.coco_set import annotation
from training.config import TrainingConfig, load_config

SIDE = 64
NAMES = ("brick", "tile", "slab")
SMALLEST = [
    "data.workers=0",
    "output.tensorboard=false",
    "device=cpu",
    "threads=1",
    "precision=float32",
    "channels_last=false",
    f"model.input.min_size={SIDE}",
    f"model.input.max_size={SIDE}",
    "model.backbone.fpn_channels=8",
    "model.box.width=16",
    "model.mask.width=8",
    "model.mask.convolutions=1",
]
"""Overrides that make the network of a preset as small as can be, on a CPU."""


def write_tiny_set(
    folder: Path, *, images: int = 6, side: int = SIDE, sides: tuple[tuple[int, int], ...] = ()
) -> None:
    """`folder`/images and `folder`/train.json: rectangles of three classes on noise, one to three to a picture.

    The pictures are squares, or take turns in the heights and widths of `sides`.
    """
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    entries: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number in range(images):
        height, width = sides[number % len(sides)] if sides else (side, side)
        pixels = random.integers(0, 80, (height, width, 3), dtype=np.uint8)
        for category in range(number % 3 + 1):
            x, y = (int(v) for v in random.integers(0, min(height, width) // 2, 2))
            w, h = (int(v) for v in random.integers(12, min(height, width) // 2, 2))
            pixels[y : y + h, x : x + w, category] = 255
            annotations.append(annotation(len(annotations) + 1, number + 100, category + 1, [x, y, w, h]))
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        entries.append({"id": number + 100, "file_name": f"{number}.png", "width": width, "height": height})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    (folder / "train.json").write_text(
        json.dumps({"images": entries, "annotations": annotations, "categories": categories})
    )


def tiny_changes(folder: Path, out: Path) -> list[str]:
    """Overrides of training/presets/shapes.toml: the set in `folder`, the smallest network of every part."""
    return [
        f"data.train_images={folder / 'images'}",
        f"data.train_annotations={folder / 'train.json'}",
        f"data.val_images={folder / 'images'}",
        f"data.val_annotations={folder / 'train.json'}",
        "data.mask_classes=brick,tile",
        *SMALLEST,
        f"output.dir={out}",
        "output.log_every=1",
        "optimiser.name=adamw",
        "optimiser.learning_rate=1e-3",
        "optimiser.weight_decay=0.01",
        "optimiser.clip_norm=10",
        "model.box.rois_per_image=8",
        "teacher.weight=0",
        "schedule.batch_size=2",
        "schedule.warmup_steps=2",
        "schedule.end_to_end_steps=0",
        "schedule.detector_steps=2",
        "schedule.mask_steps=2",
    ]


def tiny_config(folder: Path, out: Path, *words: str) -> TrainingConfig:
    """Of `tiny_changes` and further ones."""
    return load_config("training/presets/shapes.toml", [*tiny_changes(folder, out), *words])


def rows(out: Path) -> list[dict[str, str]]:
    """The log of the run in a folder."""
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(out: Path) -> dict[str, Tensor]:
    """The network of the run in a folder."""
    state: dict[str, Tensor] = load_checkpoint(out / "checkpoint.pt")["model"]
    return state


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two networks are the same bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
