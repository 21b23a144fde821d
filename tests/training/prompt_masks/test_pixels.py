"""Prompted masks become run lengths: bilinear, 0 or more, clipped to the box."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from training.prompt_masks.pixels import area_of, pixel_masks
from training.prompt_masks.segmenter import Embedding, Fit, Frame, Prompted


def smooth(seed: int, side: int) -> NDArray[np.float32]:
    """Logits [side, side] with several blobs."""
    noise = torch.randn(1, 1, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(side, side), mode="bicubic")[0, 0].numpy()


def sampled(logits: NDArray[np.float32], frame: Frame) -> NDArray[np.float64]:
    """Logits at the centres of the image's pixels, by torch's own sampling, [H, W]."""
    xs = (torch.arange(frame.width, dtype=torch.float64) + 0.5) * frame.seen_width / frame.width
    ys = (torch.arange(frame.height, dtype=torch.float64) + 0.5) * frame.seen_height / frame.height
    y, x = torch.meshgrid(ys / frame.side * 2 - 1, xs / frame.side * 2 - 1, indexing="ij")
    maps = torch.from_numpy(logits).double()[None, None]
    grid = torch.stack([x, y], dim=-1)[None]
    return F.grid_sample(maps, grid, align_corners=False, padding_mode="border")[0, 0].numpy()


def drawn(
    logits: NDArray[np.float32], box: tuple[float, float, float, float], frame: Frame
) -> NDArray[np.uint8]:
    """The mask of a box [H, W], and that its run lengths are written as pycocotools writes them."""
    boxes = np.array([box], np.float32)
    found = pixel_masks(
        Prompted(logits[None], np.ones(1, np.float32)), Embedding(features={}, frame=frame), boxes
    )[0]
    assert found["size"] == [frame.height, frame.width]
    mask: NDArray[np.uint8] = mask_utils.decode({**found, "counts": found["counts"].encode()})
    assert mask_utils.encode(np.asfortranarray(mask))["counts"].decode() == found["counts"]
    assert area_of(found) == mask.sum()
    return mask


@pytest.mark.parametrize("fit", ["longest", "square"])
@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (300, 200), (90, 257), (33, 17), (1, 40), (40, 1), (1100, 700)]
)
def test_a_mask_is_the_bilinear_sample_of_its_logits(height: int, width: int, fit: Fit) -> None:
    frame = Frame.of(height, width, side=256, fit=fit)
    for seed in range(3):
        logits = smooth(seed, 64)
        at_pixels = sampled(logits, frame)
        mask = drawn(logits, (0, 0, width, height), frame)
        sure = abs(at_pixels) > 1e-5
        np.testing.assert_array_equal(mask[sure], (at_pixels >= 0)[sure])


@pytest.mark.parametrize(
    "box",
    [(10.2, 20.7, 60.1, 90.9), (0, 0, 5, 300), (190.5, 280.5, 200, 300), (50, 60, 51, 61), (-9, -9, 30, 30)],
)
def test_a_mask_has_the_pixels_that_its_box_touches_and_no_others(
    box: tuple[float, float, float, float],
) -> None:
    frame = Frame.of(300, 200, side=256, fit="longest")
    inside = np.zeros((300, 200), np.uint8)
    x0, y0 = (max(int(np.floor(v)), 0) for v in box[:2])
    inside[y0 : int(np.ceil(box[3])), x0 : int(np.ceil(box[2]))] = 1
    np.testing.assert_array_equal(drawn(np.ones((64, 64), np.float32), box, frame), inside)


def test_clipped_to_a_box_a_mask_is_the_same_inside_it() -> None:
    frame = Frame.of(300, 200, side=256, fit="longest")
    draw = np.random.default_rng(0)
    for seed in range(20):
        logits = smooth(seed, 64)
        x0, y0 = draw.uniform(0, 190), draw.uniform(0, 290)
        box = (x0, y0, x0 + draw.uniform(1, 200), y0 + draw.uniform(1, 300))
        whole = drawn(logits, (0, 0, 200, 300), frame)
        inside = np.zeros_like(whole)
        inside[int(y0) : int(np.ceil(box[3])), int(x0) : int(np.ceil(box[2]))] = 1
        np.testing.assert_array_equal(drawn(logits, box, frame), whole * inside)


@pytest.mark.parametrize("box", [(10, 10, 30, 30), (200, 10, 220, 30), (10, 300, 30, 320), (-30, 5, -10, 25)])
def test_a_mask_with_nothing_in_its_box_has_no_pixel(box: tuple[float, float, float, float]) -> None:
    frame = Frame.of(300, 200, side=256, fit="longest")
    logits = np.full((64, 64), -1, np.float32)
    logits[30:, 30:] = 1
    assert drawn(logits, box, frame).sum() == 0


def test_a_mask_of_the_whole_image_is_one_run() -> None:
    frame = Frame.of(30, 20, side=256, fit="longest")
    assert drawn(np.ones((64, 64), np.float32), (0, 0, 20, 30), frame).all()


def test_masks_are_those_of_sams_own_steps_but_for_pixels_at_the_edge() -> None:
    """SAM enlarges to the canvas, cuts off the padding, and goes on to the size of the image; here it is one step."""
    frame = Frame.of(480, 320, side=1024, fit="longest")
    for seed in range(3):
        logits = smooth(seed, 256)
        on_canvas = F.interpolate(torch.from_numpy(logits)[None, None], (1024, 1024), mode="bilinear")
        cut = on_canvas[..., : frame.seen_height, : frame.seen_width]
        theirs = F.interpolate(cut, (480, 320), mode="bilinear")[0, 0].numpy() >= 0
        ours = drawn(logits, (0, 0, 320, 480), frame).astype(bool)
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.99


def test_no_boxes_have_no_masks() -> None:
    frame = Frame.of(30, 20, side=256, fit="longest")
    prompted = Prompted(np.zeros((0, 64, 64), np.float32), np.zeros(0, np.float32))
    embedding = Embedding(features={}, frame=frame)
    assert pixel_masks(prompted, embedding, np.zeros((0, 4), np.float32)) == []
