"""The deconvolution as a matrix product, the mask of a class as one dot product a pixel, the pyramid's sums."""

import pytest
import torch
import torch.nn.functional as F

from model.backbones import with_nearest
from model.masks.head import MaskBranch, MaskHead, OfficialMaskMLP


@pytest.mark.parametrize("rois", [0, 1, 5])
def test_masks_are_those_of_a_deconvolution_and_a_1x1_convolution(rois: int) -> None:
    torch.manual_seed(0)
    head = MaskHead(channels=6, width=8, convolutions=2)
    assert head.deconv.bias is not None
    torch.nn.init.normal_(head.deconv.bias)
    mlp = OfficialMaskMLP(width=8, mask_size=14)
    torch.nn.init.normal_(mlp.fc.weight, std=0.1)
    pooled, weights, bias = torch.randn(rois, 6, 7, 7), torch.randn(rois, 8), torch.tensor(0.3)
    after = torch.relu(head.deconv(head.convs(pooled)))
    expected = (after * weights[:, :, None, None]).sum(1) + bias
    torch.testing.assert_close(MaskBranch(head=head, mlp=None)(pooled, weights, bias), expected)
    expected = expected + mlp.fc(after.flatten(1)).view(rois, 14, 14)
    torch.testing.assert_close(MaskBranch(head=head, mlp=mlp)(pooled, weights, bias), expected)


@pytest.mark.parametrize("fine", [(6, 8), (5, 8), (6, 7)])
def test_a_finer_level_gets_its_nearest_coarser_cells(fine: tuple[int, int]) -> None:
    coarse, lateral = torch.randn(2, 3, 3, 4), torch.randn(2, 3, *fine)
    expected = lateral + F.interpolate(coarse, size=fine, mode="nearest")
    for layout in (torch.contiguous_format, torch.channels_last):
        assert torch.equal(with_nearest(lateral.clone(memory_format=layout), coarse), expected)
        with torch.no_grad():
            given = lateral.clone(memory_format=layout)
            assert torch.equal(with_nearest(given, coarse), expected)
            assert torch.equal(given, expected) is (fine == (6, 8)), "in place where the sides are doubled"
