"""Pooling as others have it: without half a cell taken away, to the last pixel, with as many samples as cells."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from model.boxes.pooling import PyramidRoIAlign, rois_of
from model.canvas import resized_size, scaled_boxes
from model.losses import own_total
from tests.model.small_network import SMALL, asked, image, same_when_scripted, small_network, target


@pytest.mark.parametrize("training", [True, False])
def test_unaligned_pooling_is_torchvisions_at_every_level_and_of_boxes_below_a_cell(training: bool) -> None:
    torch.manual_seed(0)
    levels = {str(k): torch.randn(2, 3, 64 // 2**k, 64 // 2**k) for k in range(4)}
    corner = torch.rand(40, 2) * 180
    side = torch.cat([torch.rand(20, 2) * 60, 60 + torch.rand(10, 2) * 130, torch.rand(10, 2) * 3]) + 0.1
    boxes = [torch.cat([corner, corner + side], dim=1)[i::2] for i in range(2)]
    theirs = MultiScaleRoIAlign(list(levels), 7, 2, canonical_scale=56)
    expected = theirs(levels, boxes, [(256, 256)] * 2)
    unaligned = PyramidRoIAlign(size=7, sampling_ratio=2, canonical_size=56, aligned=False).train(training)
    torch.testing.assert_close(unaligned(levels, rois_of(boxes)), expected, rtol=1e-4, atol=1e-4)
    aligned = PyramidRoIAlign(size=7, sampling_ratio=2, canonical_size=56).train(training)
    assert (
        aligned(levels, rois_of(boxes)) - expected
    ).abs().max() > 0.1  # else the line above proves nothing


def pyramid_and_boxes() -> tuple[dict[str, Tensor], Tensor]:
    """Levels of a pyramid, and boxes of every level and of less than a cell."""
    generator = torch.Generator().manual_seed(1)
    levels = {str(k): torch.randn(2, 3, 64 // 2**k, 64 // 2**k, generator=generator) for k in range(4)}
    side = torch.rand(40, 2, generator=generator) * torch.tensor([2.0, 20, 60, 180]).repeat(10)[:, None] + 0.5
    corner = torch.rand(40, 2, generator=generator) * 150
    image = torch.arange(40).remainder(2)[:, None].float()
    return levels, torch.cat([image, corner, corner + side], dim=1)


def by_torchvision(
    levels: dict[str, Tensor], rois: Tensor, shift: float, samples: int, aligned: bool
) -> Tensor:
    """RoIs pooled from the level of their whole side, their far sides moved by `shift`."""
    side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    level = torch.floor(2 + torch.log2(side / 56 + 1e-6)).clamp(0, 3)
    moved = rois + torch.tensor([0.0, 0.0, 0.0, shift, shift])
    answers = [
        roi_align(levels[str(int(k))], moved[i : i + 1], 7, 0.25 / 2 ** float(k), samples, aligned)
        for i, k in enumerate(level)
    ]
    return torch.cat(answers)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("samples", [0, 2])
def test_boxes_that_end_at_their_last_pixel_are_pooled_as_detectron_does(
    samples: int, training: bool
) -> None:
    levels, rois = pyramid_and_boxes()
    settings: Any = {"size": 7, "sampling_ratio": samples, "canonical_size": 56, "aligned": False}
    pooling = PyramidRoIAlign(**settings, inclusive=True).train(training)
    expected = by_torchvision(levels, rois, -1.0, samples, False)
    torch.testing.assert_close(pooling(levels, rois), expected, rtol=1e-4, atol=1e-4)
    plain = PyramidRoIAlign(**settings).train(training)
    assert (plain(levels, rois) - expected).abs().max() > 0.1


@pytest.mark.parametrize("training", [True, False])
def test_as_many_samples_as_cells_are_those_of_the_operator(training: bool) -> None:
    levels, rois = pyramid_and_boxes()
    pooling = PyramidRoIAlign(size=7, sampling_ratio=0, canonical_size=56).train(training)
    expected = by_torchvision(levels, rois, 0.0, -1, True)
    torch.testing.assert_close(pooling(levels, rois), expected, rtol=1e-4, atol=1e-4)
    two = PyramidRoIAlign(size=7, sampling_ratio=2, canonical_size=56).train(training)
    assert (two(levels, rois) - expected).abs().max() > 0.1
    scripted = torch.jit.script(pooling)
    torch.testing.assert_close(scripted(levels, rois), expected, rtol=1e-4, atol=1e-4)
    padded = pooling.eval()(levels, rois[:3], 5)
    torch.testing.assert_close(padded[:3], expected[:3], rtol=1e-4, atol=1e-4)
    assert padded.shape[0] == 5 and padded[3:].abs().max() == 0
    assert pooling(levels, rois[:0]).shape == (0, 3, 7, 7)
    halves = {name: level.bfloat16() for name, level in levels.items()}
    assert pooling(halves, rois).dtype == torch.bfloat16


def test_bicubic_pooling_wants_a_number_of_samples() -> None:
    with pytest.raises(ValueError, match="sampling_ratio is 0, of pooling bicubic"):
        small_network(box=dataclasses.replace(SMALL.box, pooling="bicubic", sampling_ratio=0))


@pytest.mark.parametrize(("height", "width"), [(67, 101), (480, 640), (101, 67), (64, 64), (1, 500)])
def test_sides_rounded_down_are_those_of_torchvisions_interpolation(height: int, width: int) -> None:
    scale = min(64 / min(height, width), 96 / max(height, width))
    image = torch.zeros(1, 1, height, width)
    mine = resized_size(height, width, 64, 96, True)
    if min(int(height * scale), int(width * scale)) < 1:
        assert min(mine) == 1  # torchvision refuses such an image
        return
    theirs = torch.nn.functional.interpolate(
        image, scale_factor=scale, mode="bilinear", recompute_scale_factor=True, align_corners=False
    )
    assert mine == tuple(theirs.shape[2:])


def test_places_of_the_first_and_the_last_pixel_are_scaled_where_boxes_end_with_a_pixel() -> None:
    box, scale = torch.tensor([[3.0, 4.0, 6.0, 10.0]]), torch.tensor([2.0, 3.0, 2.0, 3.0])
    assert scaled_boxes(box, scale, False).tolist() == [[6, 12, 12, 30]]
    ends = scaled_boxes(box, scale, True)  # the last pixels are at 5 and 9: at 10 and 27 once enlarged
    assert ends.tolist() == [[6, 12, 11, 28]]
    torch.testing.assert_close(scaled_boxes(ends, 1 / scale, True), box)
    small = scaled_boxes(torch.tensor([[3.0, 4.0, 3.5, 5.0]]), torch.full((4,), 4.0), True)
    assert small.tolist() == [[12, 16, 13, 18]]  # not a side below zero


def test_truth_and_answers_of_a_network_whose_boxes_end_with_a_pixel_are_scaled_alike() -> None:
    network = small_network(box=dataclasses.replace(SMALL.box, inclusive=True))
    photo, one = image(32, 48), target(3, height=32, width=48)
    batch = network.batch_of([photo], [one], None, own_total)
    expected = scaled_boxes(one["boxes"], batch.truth.scales[0], True)
    assert batch.truth.scales.max() > 1.5
    torch.testing.assert_close(batch.truth.boxes[0, : len(expected)], expected)
    losses = network.losses([photo], [one])
    assert all(bool(loss.isfinite()) for loss in losses.values())
    with torch.no_grad():
        (answer,) = same_when_scripted(network.eval().inference(), asked([photo], classes=5))
    assert 0 < answer["boxes"].max() <= 48
