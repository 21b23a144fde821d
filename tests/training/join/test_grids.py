import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from tests.training.join.made_sources import disc, made_objects
from training.evaluate.precision import filled_boxes, mask_iou
from training.join.grids import (
    SIDE,
    agreement,
    as_maps,
    certainty,
    filled,
    logits_of,
    on_boxes,
    on_canvas,
    run_lengths,
    truth_on_boxes,
)

BOXES = np.array([[4.3, 10.0, 70.9, 50.5], [40.0, 2.5, 64.0, 60.0]], np.float32)
HEIGHT, WIDTH = 64, 96
SHARES = BOXES / max(HEIGHT, WIDTH)


def test_a_canvas_seen_in_a_box_is_what_lies_there_in_an_image_wider_than_high() -> None:
    logits = np.full((2, 128, 128), -6.0, np.float32)
    logits[:, :, 64:] = 6.0  # the right half of the canvas: from column 48 of 96 on
    maps = on_boxes(logits, SHARES)
    share = (maps >= 128).mean(axis=(1, 2))
    assert share == pytest.approx([(70.9 - 48) / (70.9 - 4.3), (64 - 48) / 24], abs=0.02)
    assert (maps[0, :, 0] < 128).all() and (maps[0, :, -1] >= 128).all()


def test_a_mask_put_on_a_canvas_and_seen_in_its_box_again_is_itself() -> None:
    maps = np.stack([disc(0.8), disc(0.5)])
    again = on_boxes(on_canvas(maps, SHARES, 256), SHARES)
    assert (agreement(maps, again) > 0.97).all()


def test_a_canvas_beyond_the_box_says_background() -> None:
    canvas = on_canvas(filled(2), SHARES, 96)
    assert canvas[1, 30, 50] > 5
    assert (canvas[1, :, :39] == -8).all() and (canvas[1, 61:] == -8).all()


def test_a_filled_grid_is_the_filled_box() -> None:
    boxes = np.array([[3, 5, 20, 31], [0, 0, 96, 64]], np.float32)
    for mask, box in zip(
        run_lengths(filled(2), boxes, HEIGHT, WIDTH),
        filled_boxes(boxes.astype(np.float64), HEIGHT, WIDTH),
        strict=True,
    ):
        assert mask_iou(mask, box) == 1


def test_iou_on_grids_is_that_of_pycocotools_at_the_pixels_within_a_pixels_border() -> None:
    objects = made_objects(2, each=10, known=lambda label: True)
    truth = [one.truth for one in objects.objects if one.truth is not None]
    maps = np.stack([disc(0.7)] * len(truth))
    on_grid = agreement(maps, truth_on_boxes(truth, objects.boxes))
    at_pixels = np.zeros(len(truth))
    for number, one in enumerate(truth):
        box = objects.boxes[number : number + 1]
        (mask,) = run_lengths(maps[number : number + 1], box, *objects.sizes[number])
        at_pixels[number] = mask_iou(mask, one)
    assert at_pixels.min() < 0.8  # else the next line would hold of anything
    assert on_grid == pytest.approx(at_pixels, abs=0.05)
    assert on_grid.mean() == pytest.approx(at_pixels.mean(), abs=0.01)


def test_a_true_mask_survives_its_grid() -> None:
    objects = made_objects(2, each=10, known=lambda label: True)
    truth = [one.truth for one in objects.objects if one.truth is not None]
    maps = truth_on_boxes(truth, objects.boxes)
    for number, one in enumerate(truth):
        (mask,) = run_lengths(
            maps[number : number + 1], objects.boxes[number : number + 1], *objects.sizes[number]
        )
        assert mask_iou(mask, one) > 0.98


def test_a_true_mask_that_leaves_its_box_is_cut_on_the_grid_and_not_where_iou_is_taken() -> None:
    whole = mask_utils.encode(np.asfortranarray(np.ones((HEIGHT, WIDTH), np.uint8)))
    box = np.array([[10, 10, 42, 42]], np.float32)
    assert (truth_on_boxes([whole], box) == 255).all()
    (mask,) = run_lengths(filled(1), box, HEIGHT, WIDTH)
    assert mask_iou(mask, whole) == pytest.approx(32 * 32 / (HEIGHT * WIDTH))


def test_a_mask_is_as_sure_of_itself_as_its_probabilities_say() -> None:
    maps = np.zeros((3, SIDE, SIDE), np.uint8)
    maps[0, :10] = 255
    maps[1, :10] = 153  # 0.6 inside, 0 outside: 0.6 of it is expected to be right
    assert certainty(maps) == pytest.approx([1.0, 0.6, 0.0])


def test_agreement_of_nothing_with_nothing_is_whole() -> None:
    nothing = np.zeros((1, SIDE, SIDE), np.uint8)
    assert agreement(nothing, nothing) == [1.0]
    assert agreement(nothing, filled(1)) == [0.0]


def test_probabilities_of_half_and_more_are_inside_on_a_grid_and_no_others() -> None:
    maps = as_maps(torch.tensor([0.5, 0.499]).view(2, 1, 1).expand(2, SIDE, SIDE))
    assert (maps[0] >= 128).all() and (maps[1] < 128).all()
    assert np.isfinite(logits_of(maps)).all()


def test_logits_of_bytes_are_even_about_the_half() -> None:
    ends = logits_of(np.array([0, 127, 128, 255], np.uint8))
    assert ends[0] == pytest.approx(-ends[3], abs=1e-3) and ends[1] == pytest.approx(-ends[2], abs=1e-6)
