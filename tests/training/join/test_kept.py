"""A segmenter's answers that are kept: asked once for each image and box, and the same bytes ever after."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.training.join.made_sources import embedded
from training.join.kept import KeptSegmenter
from training.prompt_masks.segmenter import Embedding, Prompted


class Asked:
    """A segmenter that counts what it is asked; masks depend on the image, the box and the prior."""

    def __init__(self, name: str = "asked", *, arrays: bool = True) -> None:
        self.name, self.arrays = name, arrays
        self.images = self.boxes = self.priors = 0

    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        self.images += 1
        return embedded(image.mean(axis=2) if self.arrays else [1, 2], len(image))

    def masks(
        self, embedding: Embedding, boxes: NDArray[np.float32], prior: NDArray[np.float32] | None = None
    ) -> Prompted:
        self.boxes += len(boxes)
        self.priors += prior is not None
        seen = np.float32(np.mean(embedding.features["made"]))
        start = 0 if prior is None else prior
        logits = np.stack([np.full((4, 4), seen + box.sum() / 7, np.float32) for box in boxes]) + start
        return Prompted(logits.astype(np.float32), (boxes[:, 0] / 9).astype(np.float32))


IMAGE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
BOXES = np.array([[0, 1, 5, 6], [1, 1, 7, 4], [2, 0, 3, 3]], np.float32)


def same(one: Prompted, other: Prompted) -> bool:
    return np.array_equal(one.logits, other.logits) and np.array_equal(one.quality, other.quality)


def test_another_process_asks_nothing_twice_and_gets_the_same(tmp_path: Path) -> None:
    plain = Asked()
    wanted = plain.masks(plain.embed(IMAGE), BOXES)
    first, second = Asked(), Asked()
    for segmenter in (first, second):
        kept = KeptSegmenter(segmenter, tmp_path)
        embedding = kept.embed(IMAGE)
        assert same(kept.masks(embedding, BOXES[:2]), Prompted(wanted.logits[:2], wanted.quality[:2]))
        assert same(kept.masks(embedding, BOXES), wanted)
        assert embedding.frame == plain.embed(IMAGE).frame
    assert (first.images, first.boxes) == (1, 3)
    assert (second.images, second.boxes) == (0, 0)


def test_priors_go_to_the_segmenter_each_time(tmp_path: Path) -> None:
    segmenter = Asked()
    kept = KeptSegmenter(segmenter, tmp_path)
    prior = np.ones((3, 4, 4), np.float32)
    found = [kept.masks(kept.embed(IMAGE), BOXES, prior) for _ in range(2)]
    assert segmenter.priors == 2 and same(*found)
    assert not same(found[0], kept.masks(kept.embed(IMAGE), BOXES))


def test_other_pixels_and_other_segmenters_have_files_of_their_own(tmp_path: Path) -> None:
    segmenter, other = Asked(), Asked("other")
    KeptSegmenter(segmenter, tmp_path).embed(IMAGE)
    KeptSegmenter(segmenter, tmp_path).embed(IMAGE[::-1])
    KeptSegmenter(segmenter, tmp_path).embed(IMAGE.reshape(4, 16, 3))
    KeptSegmenter(other, tmp_path).embed(IMAGE)
    assert (segmenter.images, other.images) == (3, 1)


def test_a_segmenter_whose_features_are_no_arrays_is_asked_each_time(tmp_path: Path) -> None:
    segmenter = Asked(arrays=False)
    kept = KeptSegmenter(segmenter, tmp_path)
    for _ in range(2):
        kept.masks(kept.embed(IMAGE), BOXES)
    assert (segmenter.images, segmenter.boxes) == (2, 6)


def test_no_box_is_no_mask(tmp_path: Path) -> None:
    class NoBoxes(Asked):
        def masks(
            self, embedding: Embedding, boxes: NDArray[np.float32], prior: NDArray[np.float32] | None = None
        ) -> Prompted:
            return Prompted(np.zeros((len(boxes), 4, 4), np.float32), np.zeros(len(boxes), np.float32))

    kept = KeptSegmenter(NoBoxes(), tmp_path)
    assert kept.masks(kept.embed(IMAGE), BOXES[:0]).logits.shape == (0, 4, 4)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    KeptSegmenter(Asked(), tmp_path).embed(IMAGE)
    (path,) = tmp_path.rglob("embedding.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"embedding\.npz cannot be read.*remove it"):
        KeptSegmenter(Asked(), tmp_path).embed(IMAGE)
