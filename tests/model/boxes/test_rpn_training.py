"""Training's proposals, anchors and losses for all images at once, against torchvision's one by one."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from model.boxes.ground_truth import Batch, GroundTruth, ground_truth
from model.boxes.rpn_training import anchor_labels, level_anchors, proposals_and_losses, proposed, rpn_losses
from model.boxes.sampling import ANCHORS, random_bits, sample
from model.losses import own_total
from tests.model.boxes.test_rpn import SIZES, pyramid, rpn
from tests.model.small_network import SMALL, image, small_network, target

CANVAS = (96, 128)
TARGETS: list[Any] = [
    {**target(3), "crowd_boxes": torch.tensor([[60.0, 40, 128, 90], [0, 0, 9, 9]])},
    target(0),
    target(1, seed=1),
]


def truth(targets: list[Any] = TARGETS) -> GroundTruth:
    sizes = [*SIZES, CANVAS][: len(targets)]
    seeds = [7, 8, 9][: len(targets)]
    return ground_truth(targets, shapes=sizes, sizes=sizes, seeds=seeds, device=torch.device("cpu"))


def batch_of(levels: dict[str, Tensor], known: GroundTruth) -> Batch:
    canvas = torch.zeros(known.images, 3, *CANVAS)
    return Batch(canvas=canvas, features=levels, truth=known, total=own_total)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_proposals_are_those_of_torchvision(batched: bool, training: bool) -> None:
    module = rpn(pre_nms=300, post_nms=200)
    module._pre_nms_top_n["training"], module._post_nms_top_n["training"] = 80, 120
    module.batched = batched
    module.train(training)
    levels = {str(k): level for k, level in enumerate(pyramid(2))}
    boxes, valid = proposed(module, batch_of(levels, truth(TARGETS[1:])))
    listed = ImageList(torch.zeros(2, 3, *CANVAS), SIZES)
    theirs, _ = module(listed, levels, [{"boxes": torch.tensor([[0.0, 0, 20, 20]])}] * 2)
    for i, wanted in enumerate(theirs):
        assert wanted.shape[0] > 60
        torch.testing.assert_close(boxes[i, valid[i]], wanted, atol=1e-3, rtol=1e-5)


def test_anchors_are_labelled_as_torchvision_labels_them_but_for_crowds() -> None:
    module = rpn()
    levels = pyramid(3)
    anchors = torch.cat(level_anchors(module, levels, *CANVAS))
    (theirs, *_) = module.anchor_generator(ImageList(torch.zeros(3, 3, *CANVAS), [*SIZES, CANVAS]), levels)
    assert torch.equal(anchors, theirs)
    known = truth()
    labels, matched = anchor_labels(module, anchors, known)
    wanted, boxes = module.assign_targets_to_anchors([anchors] * 3, [{"boxes": t["boxes"]} for t in TARGETS])
    for i in range(3):
        in_crowd = (labels[i] == -1) & (wanted[i] == 0)
        assert torch.equal(torch.where(in_crowd, 0, labels[i]).float(), wanted[i])
        assert bool(in_crowd.any()) == (i == 0)
        foreground = labels[i] > 0
        assert torch.equal(known.boxes[i, matched[i, foreground]], boxes[i][foreground])
    assert int((labels > 0).sum()) > 3


def test_the_losses_are_those_of_the_sampled_anchors_one_by_one() -> None:
    module, known = rpn().train(), truth()
    generator = torch.Generator().manual_seed(2)
    anchors = torch.cat(level_anchors(module, pyramid(3), *CANVAS))
    count = anchors.shape[0]
    objectness = torch.randn(3, count, generator=generator, requires_grad=True)
    deltas = torch.randn(3, count, 4, generator=generator, requires_grad=True)
    got = rpn_losses(module, objectness, deltas, anchors, known, own_total)
    labels, matched = anchor_labels(module, anchors, known)
    bits = random_bits(known.seeds, ANCHORS, torch.arange(count))
    chosen, taken = sample(labels, bits, 16, 0.5)
    of_object, of_box, sampled = torch.zeros(()), torch.zeros(()), 0
    for i in range(3):
        mine = chosen[i, taken[i]]
        sampled += mine.numel()
        goal = labels[i, mine].float()
        of_object = of_object + F.binary_cross_entropy_with_logits(objectness[i, mine], goal, reduction="sum")
        positive = mine[goal > 0]
        wanted = module.box_coder.encode_single(known.boxes[i, matched[i, positive]], anchors[positive])
        of_box = of_box + F.smooth_l1_loss(deltas[i, positive], wanted, beta=1 / 9, reduction="sum")
    assert sampled == 3 * 16 and float(of_box.detach()) > 0
    torch.testing.assert_close(got["loss_objectness"], of_object / sampled)
    torch.testing.assert_close(got["loss_rpn_box"], of_box / sampled)
    inputs = (objectness, deltas)
    ours = torch.autograd.grad(got["loss_objectness"] + got["loss_rpn_box"], inputs)
    theirs = torch.autograd.grad((of_object + of_box) / sampled, inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert bool(a.isfinite().all())
        torch.testing.assert_close(a, b)


def test_both_ways_of_a_network_give_the_same_losses_and_gradients() -> None:
    """The same RoIs are drawn, so all that differs is the order of sums; at sizes pooled by each of a CPU's forms."""
    for side in (64, 96):
        network = small_network(backbone=dataclasses.replace(SMALL.backbone, norm="frozen")).train()
        images = [image(side, 64, seed=i) for i in range(3)]
        targets = [target(3, seed=0, with_masks=[True, False, True]), target(0), target(2, seed=3)]
        found = []
        for batched in (False, True):
            network.batched = batched
            network.zero_grad()
            losses = network.losses(images, targets, seeds=[1, 2, 3])
            sum(losses.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
            gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
            found.append((losses, gradients))
        (one, of_one), (all_, of_all) = found
        for name, loss in one.items():
            torch.testing.assert_close(loss, all_[name], rtol=1e-5, atol=1e-7)
        for name, gradient in of_one.items():
            assert float((gradient - of_all[name]).norm()) <= 1e-3 * float(gradient.norm()) + 1e-6, name


def test_the_way_is_asked_of_every_part_that_has_two() -> None:
    network = small_network()
    assert not network.batched and not network.box_pool.batched
    network.batched = True
    assert network.rpn.batched and network.box_pool.batched and network.mask_pool.batched


@torch.no_grad()
def test_proposals_carry_no_gradient_and_losses_do() -> None:
    module = rpn().train()
    levels = {str(k): level for k, level in enumerate(pyramid(3))}
    with torch.enable_grad():
        (boxes, _), losses = proposals_and_losses(module, batch_of(levels, truth()))
    assert not boxes.requires_grad and all(loss.requires_grad for loss in losses.values())
