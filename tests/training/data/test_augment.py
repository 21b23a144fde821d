"""Augmentation keeps boxes, windows and masks true to the picture."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.targets import Target, mask_windows
from tests.model.pasting import paste_crop
from tests.training.data.coco_set import assert_same
from training.data.augment import AugmentConfig, augment, flip_horizontally

HEIGHT, WIDTH = 12, 17
GRID = 256
Box = tuple[float, float, float, float]


def sample(
    boxes: list[Box], *, height: int = HEIGHT, width: int = WIDTH, **more: Any
) -> tuple[Tensor, Target]:
    """A picture of noise with noise in the window of every box but the last, which has no mask."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    boxes_N4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = [
        torch.randint(0, 2, (y1 - y0, x1 - x0), generator=generator, dtype=torch.uint8)
        for x0, y0, x1, y1 in mask_windows(boxes_N4, height, width).tolist()[:-1]
    ] + [torch.zeros((0, 0), dtype=torch.uint8)] * bool(boxes)
    known: Any = {
        "image_id": 7,
        "boxes": boxes_N4,
        "labels": torch.arange(1, len(boxes) + 1),
        "has_mask": torch.tensor([mask.numel() > 0 for mask in masks], dtype=torch.bool),
        "masks": masks,
        "crowd_boxes": torch.tensor([[1.5, 2.0, 4.0, 9.25]]),
    }
    return image, known | more


@st.composite
def grid_boxes(draw: st.DrawFn, height: int = HEIGHT, width: int = WIDTH, grid: int = GRID) -> list[Box]:
    """Boxes on the data set's grid, many of them with edges a hair beside a whole pixel."""
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        spans = []
        for side in (width, height):
            low = draw(st.integers(0, side * grid - 1))
            spans.append((low / grid, draw(st.integers(low + 1, side * grid)) / grid))
        boxes.append((spans[0][0], spans[1][0], spans[0][1], spans[1][1]))
    return boxes


@given(grid_boxes())
def test_a_flipped_mask_pasted_is_the_pasted_mask_flipped(boxes: list[Box]) -> None:
    image, target = sample(boxes)
    flipped_image, flipped = flip_horizontally(image, target)
    assert torch.equal(flipped_image, image.flip(2))
    windows = mask_windows(target["boxes"], HEIGHT, WIDTH)
    flipped_windows = mask_windows(flipped["boxes"], HEIGHT, WIDTH)
    for i in range(len(boxes) - 1):
        pasted = paste_crop(target["masks"][i], windows[i], HEIGHT, WIDTH)
        flipped_pasted = paste_crop(flipped["masks"][i], flipped_windows[i], HEIGHT, WIDTH)
        assert torch.equal(flipped_pasted, pasted.flip(1))


@given(grid_boxes())
def test_flipping_twice_changes_nothing(boxes: list[Box]) -> None:
    image, target = sample(boxes)
    twice_image, twice = flip_horizontally(*flip_horizontally(image, target))
    assert torch.equal(twice_image, image)
    assert_same(twice, target)


def test_a_flip_mirrors_boxes_and_crowds_about_the_middle_of_the_image() -> None:
    _, flipped = flip_horizontally(*sample([(1.0, 2.0, 4.5, 6.0), (0.0, 0.0, 17.0, 12.0)]))
    assert flipped["boxes"].tolist() == [[12.5, 2.0, 16.0, 6.0], [0.0, 0.0, 17.0, 12.0]]
    assert flipped["crowd_boxes"].tolist() == [[13.0, 2.0, 15.5, 9.25]]


def test_an_image_without_objects_can_be_flipped() -> None:
    _, flipped = flip_horizontally(*sample([]))
    assert flipped["boxes"].shape == (0, 4)
    assert flipped["masks"] == []


JITTER = AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)


def test_the_seed_alone_decides_whatever_the_global_random_state() -> None:
    image, target = sample([(1.0, 2.0, 4.5, 6.0), (2.0, 2.0, 3.0, 3.0)])
    torch.manual_seed(1)
    first_image, first = augment(image, target, 42, JITTER)
    torch.manual_seed(2)
    second_image, second = augment(image, target, 42, JITTER)
    assert torch.equal(first_image, second_image)
    assert_same(first, second)
    assert len({augment(image, target, seed, JITTER)[0].sum().item() for seed in range(8)}) == 8


def test_half_of_many_seeds_flip() -> None:
    image, target = sample([(1.0, 2.0, 4.5, 6.0)])
    config = AugmentConfig()
    flips = [torch.equal(augment(image, target, seed, config)[0], image.flip(2)) for seed in range(200)]
    assert 70 < sum(flips) < 130


def test_colour_jitter_leaves_the_geometry_and_the_type_alone() -> None:
    image, target = sample([(1.0, 2.0, 4.5, 6.0), (2.0, 2.0, 3.0, 3.0)])
    config = AugmentConfig(horizontal_flip=0.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    changed, same = augment(image, target, 3, config)
    assert changed.dtype == torch.uint8
    assert changed.shape == image.shape
    assert not torch.equal(changed, image)
    assert_same(same, target)


def test_everything_turned_off_changes_nothing() -> None:
    image, target = sample([(1.0, 2.0, 4.5, 6.0)])
    same_image, same = augment(image, target, 5, AugmentConfig(horizontal_flip=0.0))
    assert torch.equal(same_image, image)
    assert_same(same, target)


def test_augmenting_leaves_its_arguments_as_they_were() -> None:
    image, target = sample([(1.0, 2.0, 4.5, 6.0), (2.0, 2.0, 3.0, 3.0)])
    untouched_image, untouched = sample([(1.0, 2.0, 4.5, 6.0), (2.0, 2.0, 3.0, 3.0)])
    augment(image, target, 1, AugmentConfig(horizontal_flip=1.0, brightness=0.5))
    assert torch.equal(image, untouched_image)
    assert_same(target, untouched)


@pytest.mark.parametrize("setting", [{"horizontal_flip": 1.5}, {"hue": 0.6}, {"brightness": -0.1}])
def test_a_setting_out_of_range_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"augment.{next(iter(setting))}"):
        AugmentConfig(**setting)
