"""Pooling without half a cell taken away: torchvision's `MultiScaleRoIAlign`, in training and in answers."""

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from model.boxes.pooling import PyramidRoIAlign, rois_of
from model.canvas import resized_size


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
