"""Proposals: the best anchors decoded first, against torchvision's RPN, which decodes all."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from model import build
from model.boxes.head import moved_boxes
from model.boxes.rpn import CrowdAwareRPN
from model.config import ModelConfig, RpnConfig

SIZES = [(90, 128), (96, 100)]


def rpn(*, pre_nms: int = 60, post_nms: int = 80) -> CrowdAwareRPN:
    torch.manual_seed(0)
    config = RpnConfig(
        anchor_sizes=(8, 16, 32, 48, 64),
        batch_per_image=16,
        pre_nms_train=10,
        pre_nms_test=pre_nms,
        post_nms_train=10,
        post_nms_test=post_nms,
    )
    built = build.rpn(ModelConfig(rpn=config), channels=8).eval()
    torch.nn.init.normal_(built.head.bbox_pred.weight, std=0.3)
    torch.nn.init.normal_(built.head.cls_logits.weight, std=0.1)
    return built


def pyramid(images: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    return [torch.randn(images, 8, h, w, generator=generator) for h, w in sides]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("pre_nms", "post_nms"), [(60, 80), (300, 10_000), (5, 3)])
@torch.no_grad()
def test_proposals_are_those_of_torchvision(pre_nms: int, post_nms: int, together: bool) -> None:
    module = rpn(pre_nms=pre_nms, post_nms=post_nms)
    levels = pyramid(2)
    boxes, counts = module.proposals(levels, 96, 128, torch.tensor(SIZES).float(), together)
    ours = [box[box[:, 2] > box[:, 0]] for box in boxes.split(counts * (2 if together else 1))]
    assert together or sum(len(box) for box in ours) == len(boxes)
    canvas = ImageList(torch.zeros(2, 3, 96, 128), SIZES)
    theirs, _ = module(canvas, {str(k): level for k, level in enumerate(levels)})
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert a.shape[0] > (2 if post_nms == 3 else 40)
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("together", [False, True])
@torch.no_grad()
def test_scripted_proposals_equal_eager_ones(together: bool) -> None:
    module = rpn()

    class Proposing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rpn = module

        def forward(self, levels: list[Tensor], sizes: Tensor, together: bool) -> tuple[Tensor, list[int]]:
            return self.rpn.proposals(levels, 96, 128, sizes, together)

    sizes = torch.tensor(SIZES).float()
    eager, counts = module.proposals(pyramid(2), 96, 128, sizes, together)
    scripted, its_counts = torch.jit.script(Proposing())(pyramid(2), sizes, together)
    assert torch.equal(eager, scripted) and counts == its_counts


@torch.no_grad()
def test_scores_that_are_not_numbers_propose_nothing() -> None:
    module = rpn()
    levels = [torch.full_like(level, float("nan")) for level in pyramid(1)]
    sizes = torch.tensor(SIZES[:1]).float()
    assert module.proposals(levels, 96, 128, sizes)[0].shape == (0, 4)
    assert not module.proposals(levels, 96, 128, sizes, True)[0].any()


def test_sides_are_bounded_as_in_detectron() -> None:
    anchors = torch.tensor([[0.0, 0, 16, 16]])
    box = moved_boxes(torch.tensor([[0.0, 0, 99, 99]]), anchors)
    torch.testing.assert_close(box, torch.tensor([[-492.0, -492, 508, 508]]), atol=1e-2, rtol=0)
