"""A real segmenter, where the variable MASKX_SEGMENTER names the folder of one."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from training.prompt_masks import load_segmenter, pixel_masks
from training.prompt_masks.description import described
from training.prompt_masks.onnx_sam import OnnxSegmenter


@pytest.fixture
def folder() -> Path:
    named = os.environ.get("MASKX_SEGMENTER")
    if not named:
        pytest.skip("no segmenter; name the folder of one in MASKX_SEGMENTER")
    return Path(named)


def drawn() -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """A grey image of 300 x 200 with a red disc and a blue bar on it, and their masks."""
    x, y = np.arange(300) + 0.5, np.arange(200)[:, None] + 0.5
    disc = (x - 90) ** 2 + (y - 100) ** 2 <= 60**2
    bar = (abs(x - 230) <= 25) & (abs(y - 90) <= 70)
    image = np.random.default_rng(0).normal(128, 6, (200, 300, 3)).clip(0, 255).astype(np.uint8)
    image[disc], image[bar] = (200, 30, 30), (30, 40, 190)
    return image, [disc, bar]


def test_a_drawn_disc_and_a_bar_are_found_in_their_boxes(folder: Path) -> None:
    image, truth = drawn()
    boxes = np.array([[30, 40, 150, 160], [205, 20, 255, 160]], np.float32)
    segmenter = load_segmenter(folder, device="cpu")
    embedding = segmenter.embed(image)
    prompted = segmenter.masks(embedding, boxes)
    for runs, mask in zip(pixel_masks(prompted, embedding, boxes), truth, strict=True):
        found = mask_utils.decode({**runs, "counts": runs["counts"].encode()}).astype(bool)
        assert (found & mask).sum() / (found | mask).sum() > 0.9
    assert (prompted.quality > 0.7).all()


def test_boxes_in_batches_have_nearly_the_logits_that_each_has_alone(folder: Path) -> None:
    description = described(folder)[0]
    if description.kind != "sam":
        pytest.skip("its batches are transformers' own")
    segmenter = OnnxSegmenter(folder, description, name="", device="cpu", threads=1, batch=2)
    if not segmenter.takes_several:
        pytest.skip("its decoder takes one box at a time")
    image, _ = drawn()
    embedding = segmenter.embed(image)
    boxes = np.array([[30, 40, 150, 160], [205, 20, 255, 160], [0, 0, 300, 200]], np.float32)
    together = segmenter.masks(embedding, boxes).logits
    alone = np.concatenate([segmenter.masks(embedding, box[None]).logits for box in boxes])
    np.testing.assert_allclose(together, alone, atol=1e-3)
