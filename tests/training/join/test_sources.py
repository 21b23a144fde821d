from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.training.join.made_sources import IMAGE, disc, embedded, made_objects
from training.join import sources
from training.join.grids import Maps
from training.join.objects import Objects, Placed
from training.join.sources import Answers, Said, SegmenterMasks, asked
from training.prompt_masks.segmenter import Embedding, Prompted


class Discs:
    """A disc of every object, and the images it was asked about."""

    names = ("transfer",)

    def __init__(self, identity: str = "discs", *, until: int = 10**6) -> None:
        self.identity, self.until = identity, until
        self.images: list[int] = []

    def of_image(
        self, pixels: NDArray[np.uint8], objects: Sequence[Placed], before: Mapping[str, Maps]
    ) -> Answers:
        if len(self.images) == self.until:
            raise KeyboardInterrupt
        self.images.append(objects[0].image)
        return {"transfer": (np.stack([disc(0.5 + 0.02 * one.image) for one in objects]), None)}


class Echo:
    """A segmenter that answers with the mask it is given, or else with nothing; it claims .5 or .9."""

    name = "echo"

    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        return embedded(None, image.shape[0])

    def masks(
        self, embedding: Embedding, boxes: NDArray[np.float32], prior: NDArray[np.float32] | None = None
    ) -> Prompted:
        nothing = np.full((len(boxes), 64, 64), -5, np.float32)
        quality = np.full(len(boxes), 0.5 if prior is None else 0.9, np.float32)
        return Prompted(nothing if prior is None else prior, quality)


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    monkeypatch.setattr(sources, "PART", 2)
    for number in range(6):
        Image.new("RGB", (IMAGE, IMAGE)).save(tmp_path / f"{number}.png")
    return made_objects(2, each=3, known=lambda label: label == 1)


def same(one: Mapping[str, Said], other: Mapping[str, Said]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[key].maps, other[key].maps)
        and np.array_equal(one[key].quality, other[key].quality)
        for key in one
    )


def test_what_was_stopped_goes_on_with_the_parts_that_are_left_and_says_the_same(
    objects: Objects, tmp_path: Path
) -> None:
    whole = asked([Discs()], objects, tmp_path, None)
    with pytest.raises(KeyboardInterrupt):
        asked([Discs(until=5)], objects, tmp_path, tmp_path / "kept")
    again = Discs()
    assert same(whole, asked([again], objects, tmp_path, tmp_path / "kept"))
    assert again.images == [4, 5]
    done = Discs()
    assert same(whole, asked([done], objects, tmp_path, tmp_path / "kept")) and not done.images


def test_kept_parts_are_not_those_of_another_source_or_of_other_objects(
    objects: Objects, tmp_path: Path
) -> None:
    asked([Discs()], objects, tmp_path, tmp_path / "kept")
    other = Discs("other discs")
    asked([other], objects, tmp_path, tmp_path / "kept")
    moved = made_objects(2, each=3, known=lambda label: label == 1, seed=5)
    again = Discs()
    asked([again], moved, tmp_path, tmp_path / "kept")
    assert len(other.images) == len(again.images) == 6


def test_a_part_that_cannot_be_read_is_named(objects: Objects, tmp_path: Path) -> None:
    asked([Discs()], objects, tmp_path, tmp_path / "kept")
    (part,) = (tmp_path / "kept").glob("*/00001.npz")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ValueError, match="00001.npz cannot be read.*remove it"):
        asked([Discs()], objects, tmp_path, tmp_path / "kept")


def test_a_segmenter_is_shown_the_transfers_mask_beside_the_box(objects: Objects, tmp_path: Path) -> None:
    found = asked([Discs(), SegmenterMasks(Echo(), after="discs")], objects, tmp_path, None)
    assert tuple(found) == ("transfer", "segmenter", "prior", "box")
    assert not (found["segmenter"].maps >= 128).any()
    both = (found["prior"].maps >= 128) == (found["transfer"].maps >= 128)
    assert both.mean() > 0.95
    assert found["prior"].quality == pytest.approx(0.9) and found["segmenter"].quality == pytest.approx(0.5)
    assert not found["transfer"].quality.any()


def test_an_image_that_cannot_be_read_is_named(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="3.png"):
        asked([Discs()], objects, tmp_path, None)
