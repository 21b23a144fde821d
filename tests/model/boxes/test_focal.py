"""Focal loss (Lin et al., 2017) as an option of the RPN and of the classes of the box branch."""

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from model.boxes.ground_truth import Batch, ground_truth
from model.boxes.rpn import CrowdAwareRPN
from model.boxes.rpn_training import anchor_labels, level_anchors, proposals_and_losses
from model.config import FocalConfig, model_config_from_dict
from model.losses import Focal, class_loss, own_total
from tests.model.boxes.test_rpn import SIZES, pyramid
from tests.model.small_network import SMALL, image, same_when_scripted, small_network, target

FOCAL: dict[str, Any] = {
    "rpn": dataclasses.replace(SMALL.rpn, loss="focal"),
    "box": dataclasses.replace(SMALL.box, loss="focal"),
}


def test_class_loss_is_equation_5_over_the_softmax_by_the_foreground() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 4) * 2, torch.tensor([0, 3, 0, 1, 0, 0, 2])
    p = logits.softmax(dim=1)[torch.arange(7), labels]
    alpha = torch.where(labels > 0, 0.3, 0.7)
    expected = (-alpha * (1 - p) ** 1.5 * p.log()).sum() / 3
    torch.testing.assert_close(Focal(1.5, 0.3).of_classes(logits, labels, own_total), expected)


def test_without_focus_half_of_the_cross_entropy_is_left() -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 3, 0, 1, 2, 0])
    of_classes = Focal(0.0, 0.5).of_classes(logits, labels, own_total)
    torch.testing.assert_close(of_classes, 0.5 * class_loss(logits, labels, 3.0))
    single, truth = torch.randn(6), torch.tensor([0, 1, 0, 1, 1, 0])
    expected = 0.5 * torch.nn.functional.binary_cross_entropy_with_logits(single, truth.float())
    torch.testing.assert_close(Focal(0.0, 0.5).of_objects(single, truth, 6.0), expected)
    left_out = torch.cat([truth, torch.tensor([-1])])
    more = torch.cat([single, torch.tensor([9.0])])
    torch.testing.assert_close(Focal(0.0, 0.5).of_objects(more, left_out, 6.0), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_certain_answers_have_finite_losses_and_gradients(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200, 0], [200, -200, 0]], requires_grad=True)
    loss = Focal(gamma, 0.25).of_classes(logits, torch.tensor([0, 1]), own_total)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(loss.isfinite()) and bool(gradient.isfinite().all())
    assert not bool(gradient[0].any()) and bool(gradient[1].any())


def test_without_foreground_the_loss_is_divided_by_one() -> None:
    logits, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    expected = 2 * 0.75 * (2 / 3) ** 2 * torch.tensor(3.0).log()
    torch.testing.assert_close(Focal(2.0, 0.25).of_classes(logits, labels, own_total), expected)


@pytest.mark.parametrize("classes", [1, 80])
def test_biases_begin_with_the_prior_whatever_the_number_of_classes(classes: int) -> None:
    net = small_network(classes, **FOCAL)
    background = float(net.box_predictor.cls_score.bias.softmax(dim=0)[0].detach())
    assert background == pytest.approx(0.99)
    objectness = net.rpn.head.cls_logits.bias.detach().sigmoid()
    torch.testing.assert_close(objectness, torch.full_like(objectness, 0.01))
    plain = small_network()
    assert not bool(plain.box_predictor.cls_score.bias.any()) and not bool(
        plain.rpn.head.cls_logits.bias.any()
    )


def rpn_losses(counts: list[int], **changes: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Losses of the RPN on a fixed pyramid, its objectness over all anchors, and their labels."""
    rpn = small_network(backbone=dataclasses.replace(SMALL.backbone, fpn_channels=8), **changes).rpn
    assert isinstance(rpn, CrowdAwareRPN)
    levels = {str(k): level for k, level in enumerate(pyramid(2))}
    targets = [target(3), target(2, seed=1)]
    targets[0]["crowd_boxes"] = torch.tensor([[60.0, 40, 128, 90]])
    truth = ground_truth(targets, shapes=SIZES, sizes=SIZES, seeds=[0, 1], device=torch.device("cpu"))

    def total(count: int | Tensor) -> float:
        counts.append(int(count))
        return float(max(int(count), 1))

    batch = Batch(canvas=torch.zeros(2, 3, 96, 128), features=levels, truth=truth, total=total)
    _, losses = proposals_and_losses(rpn.train(), batch)
    labels, _ = anchor_labels(rpn, torch.cat(level_anchors(rpn, list(levels.values()), 96, 128)), truth)
    logits, _ = rpn.head(list(levels.values()))
    flat = [torch.cat([x[i].permute(1, 2, 0).flatten() for x in logits]) for i in range(2)]
    return losses, torch.cat(flat), labels.flatten()


def test_the_rpn_judges_every_anchor_but_those_left_out_and_divides_by_the_foreground() -> None:
    counts: list[int] = []
    losses, logits, labels = rpn_losses(counts, **FOCAL)
    judged = labels >= 0
    assert int((labels < 0).sum()) > 0 and counts == [int((labels > 0).sum())] and counts[0] > 0
    p = logits.sigmoid()[judged]
    right = torch.where(labels[judged] > 0, p, 1 - p)
    alpha = torch.where(labels[judged] > 0, 0.25, 0.75)
    expected = (-alpha * (1 - right) ** 2 * right.log()).sum() / counts[0]
    torch.testing.assert_close(losses["loss_objectness"], expected, rtol=1e-4, atol=1e-6)
    assert float(losses["loss_rpn_box"].detach()) > 0


def test_by_default_anchors_are_sampled_as_before() -> None:
    counts: list[int] = []
    rpn_losses(counts)
    assert counts == [2 * SMALL.rpn.batch_per_image]


def test_a_network_with_focal_losses_learns_and_scripts_as_it_is() -> None:
    net = small_network(**FOCAL)
    losses = net.train().losses([image(), image(seed=1)], [target(3), target(0, seed=1)], seeds=[0, 1])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    plain = small_network().train().losses([image()], [target(3)], seeds=[0])
    focal = small_network(**FOCAL).train().losses([image()], [target(3)], seeds=[0])
    assert not torch.equal(plain["loss_class"], focal["loss_class"])
    assert not torch.equal(plain["loss_objectness"], focal["loss_objectness"])
    same_when_scripted(net.eval().inference())


@pytest.mark.parametrize("wrong", [{"gamma": -1.0}, {"alpha": 1.5}, {"prior": 0.0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=re.escape("give 0 or more, 0 to 1, and between 0 and 1")):
        model_config_from_dict({"rpn": {"focal": wrong}})
    assert FocalConfig() == FocalConfig(gamma=2.0, alpha=0.25, prior=0.01)
