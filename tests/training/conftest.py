"""The small COCO sets of coco_set.py and tiny_set.py on disk."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.data.coco_set import HEIGHT, WIDTH, Document, Load
from tests.training.tiny_set import write_tiny_set
from training.data.coco import CocoDataset


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "set"
    write_tiny_set(folder)
    return folder


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in ("a.png", "sub/b.jpg", "empty.png"):
        pixels = generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / name)
    return images


@pytest.fixture
def load_coco(coco_folder: Path, tmp_path: Path) -> Load:
    """Write a document beside the images and load it, boxes and dogs having masks."""

    def load(contents: Document, **options: Any) -> CocoDataset:
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(contents), encoding="utf-8")
        if "classes" not in options:
            options = {"mask_classes": "box,dog"} | options
        return CocoDataset(coco_folder, path, **options)

    return load
