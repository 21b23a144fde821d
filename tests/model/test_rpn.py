"""Proposals: the best anchors decoded first, against torchvision's RPN, which decodes all."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from model.box_coding import moved_boxes
from model.rpn import CrowdAwareRPN, build_rpn, nms_by_level

SIZES = [(90, 128), (96, 100)]


def rpn(*, pre_nms: int = 60, post_nms: int = 80) -> CrowdAwareRPN:
    torch.manual_seed(0)
    built = build_rpn(
        channels=8,
        anchor_sizes=(8, 16, 32, 48, 64),
        aspect_ratios=(0.5, 1.0, 2.0),
        foreground_iou=0.7,
        background_iou=0.3,
        batch_per_image=16,
        positive_fraction=0.5,
        pre_nms_train=10,
        pre_nms_test=pre_nms,
        post_nms_train=10,
        post_nms_test=post_nms,
        nms_iou=0.7,
    ).eval()
    torch.nn.init.normal_(built.head.bbox_pred.weight, std=0.3)
    torch.nn.init.normal_(built.head.cls_logits.weight, std=0.1)
    return built


def pyramid(images: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    return [torch.randn(images, 8, h, w, generator=generator) for h, w in sides]


@pytest.mark.parametrize(("pre_nms", "post_nms"), [(60, 80), (300, 10_000), (5, 3)])
@torch.no_grad()
def test_proposals_are_those_of_torchvision(pre_nms: int, post_nms: int) -> None:
    module = rpn(pre_nms=pre_nms, post_nms=post_nms)
    levels = pyramid(2)
    ours = module.proposals(levels, 96, 128, SIZES)
    canvas = ImageList(torch.zeros(2, 3, 96, 128), SIZES)
    theirs, _ = module(canvas, {str(k): level for k, level in enumerate(levels)})
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert a.shape[0] > (2 if post_nms == 3 else 40)
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-5)


@torch.no_grad()
def test_scripted_proposals_equal_eager_ones() -> None:
    module = rpn()

    class Proposing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rpn = module

        def forward(self, levels: list[Tensor]) -> list[Tensor]:
            return self.rpn.proposals(levels, 96, 128, [(90, 128), (96, 100)])

    eager = module.proposals(pyramid(2), 96, 128, SIZES)
    for a, b in zip(torch.jit.script(Proposing())(pyramid(2)), eager, strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_scores_that_are_not_numbers_propose_nothing() -> None:
    module = rpn()
    levels = [torch.full_like(level, float("nan")) for level in pyramid(1)]
    assert module.proposals(levels, 96, 128, SIZES[:1])[0].shape == (0, 4)


def test_boxes_of_other_levels_suppress_nothing() -> None:
    box = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11]])
    score = torch.tensor([0.5, 0.9])
    assert nms_by_level([box, box], [score, score + 0.05], 0.7).tolist() == [3, 1]


def test_sides_are_bounded_as_in_detectron() -> None:
    anchors = torch.tensor([[0.0, 0, 16, 16]])
    box = moved_boxes(torch.tensor([[0.0, 0, 99, 99]]), anchors)
    torch.testing.assert_close(box, torch.tensor([[-492.0, -492, 508, 508]]), atol=1e-2, rtol=0)
