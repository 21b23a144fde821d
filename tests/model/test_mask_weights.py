"""The weight of each object's mask in the mask loss."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.losses import mask_loss, mask_softmax_loss
from model.network import MaskXRCNN
from model.targets import Target
from tests.model.small_network import SMALL, image, small_network, target


def network_of(softmax: bool = False, **mask: Any) -> MaskXRCNN:
    changes: dict[str, Any] = {"mask": dataclasses.replace(SMALL.mask, **mask)}
    if softmax:
        changes["mask"] = dataclasses.replace(changes["mask"], loss="softmax")
        changes["transfer"] = dataclasses.replace(SMALL.transfer, kind="class_specific")
    return small_network(**changes).train()


def weighted(one: Target, weights: list[float]) -> Target:
    return {**one, "mask_weights": torch.tensor(weights)}


def losses(network: MaskXRCNN, *targets: Target) -> dict[str, Tensor]:
    images = [image(seed=number) for number in range(len(targets))]
    return network.losses(images, list(targets), seeds=range(len(targets)), total=lambda count: 8.0)


@pytest.mark.parametrize("train_on", ["proposals", "ground_truth"])
def test_weights_of_1_give_the_losses_and_gradients_without_weights_to_the_last_bit(train_on: str) -> None:
    plain, ones = network_of(train_on=train_on), network_of(train_on=train_on)
    known = target(4, with_masks=[True, False, True, True])
    one, other = losses(plain, known), losses(ones, weighted(known, [1, 1, 1, 1]))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    for found in (one, other):
        sum(found.values(), torch.zeros(())).backward()
    for mine, theirs in zip(plain.parameters(), ones.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)  # type: ignore[arg-type]


def test_without_weights_the_loss_is_the_plain_one_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 14, 14, generator=generator)
    goal = torch.randint(0, 2, (3, 14, 14), generator=generator).float()
    plain = F.binary_cross_entropy_with_logits(logits, goal, reduction="sum") / (3.0 * 196)
    assert torch.equal(mask_loss(logits, goal, 3.0), plain)
    labels, of_classes = torch.tensor([1, 2, 1]), torch.randn(3, 4, 14, 14, generator=generator)
    plain = F.cross_entropy(of_classes, labels[:, None, None] * (goal >= 0.5), reduction="sum") / (3.0 * 196)
    assert torch.equal(mask_softmax_loss(of_classes, goal, labels, 3.0), plain)


def test_a_weight_is_a_factor_of_its_own_rois_loss_and_none_of_the_divisor() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 14, 14, generator=generator)
    goal = torch.randint(0, 2, (2, 14, 14), generator=generator).float()
    each = [float(mask_loss(logits[i : i + 1], goal[i : i + 1], 1.0)) for i in range(2)]
    got = float(mask_loss(logits, goal, 2.0, torch.tensor([0.25, 1.0])))
    assert got == pytest.approx((0.25 * each[0] + each[1]) / 2)
    labels, of_classes = torch.tensor([1, 3]), torch.randn(2, 4, 14, 14, generator=generator)
    each = [
        float(mask_softmax_loss(of_classes[i : i + 1], goal[i : i + 1], labels[i : i + 1], 1.0))
        for i in range(2)
    ]
    got = float(mask_softmax_loss(of_classes, goal, labels, 2.0, torch.tensor([0.25, 1.0])))
    assert got == pytest.approx((0.25 * each[0] + each[1]) / 2)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("train_on", ["proposals", "ground_truth"])
def test_each_roi_has_the_weight_of_its_own_object_in_every_image(softmax: bool, train_on: str) -> None:
    """The derivative of a linear loss by one object's weight is that object's share."""
    network = network_of(softmax, train_on=train_on)
    pair = [target(3, with_masks=[True, False, True], seed=s, image_id=s) for s in (3, 4)]

    def loss(weights: list[list[float]]) -> float:
        return float(losses(network, *map(weighted, pair, weights))["loss_mask"].detach())

    ones = [[1.0, 1, 1], [1.0, 1, 1]]
    whole, parts = loss(ones), 0.0
    for number, place in ((0, 0), (0, 2), (1, 0), (1, 2)):
        some = [list(row) for row in ones]
        some[number][place] = 0.5
        parts += 2 * (whole - loss(some))
        assert whole - loss(some) > 1e-4
    assert parts == pytest.approx(whole, rel=1e-3)
    assert loss([[1, 0.1, 1], [1, 0.1, 1]]) == whole  # of an object without a mask it is nothing


def test_the_weight_of_an_object_takes_from_the_loss_of_that_object() -> None:
    network = network_of(train_on="ground_truth")
    pair = target(2, seed=5)
    whole = losses(network, pair)["loss_mask"]
    for place, weights in enumerate(([0.25, 1.0], [1.0, 0.25])):
        only: Any = {key: value[place : place + 1] for key, value in pair.items() if key != "image_id"}
        only |= {"crowd_boxes": pair["crowd_boxes"], "image_id": 1}
        own = losses(network, only)["loss_mask"]
        found = losses(network, weighted(pair, weights))["loss_mask"]
        torch.testing.assert_close(found, whole - 0.75 * own)


def test_an_image_without_weights_beside_one_with_them_counts_whole() -> None:
    network = network_of(train_on="ground_truth")
    one, other = target(2, seed=1), target(2, seed=2)
    both = losses(network, weighted(one, [0.5, 0.5]), other)["loss_mask"]
    as_ones = losses(network, weighted(one, [0.5, 0.5]), weighted(other, [1, 1]))["loss_mask"]
    assert torch.equal(both, as_ones)
    assert float((losses(network, one, other)["loss_mask"] - both).detach()) > 1e-4


def test_parts_of_a_batch_of_which_one_has_weights_add_up_to_the_whole() -> None:
    """As with schedule.accumulate and several processes: what divides is counted over all of them."""
    network = network_of(train_on="ground_truth")
    network.set_stage("mask")
    one, other = weighted(target(2, seed=1), [0.5, 0.25]), target(3, seed=2)
    pictures = [image(seed=1), image(seed=2)]
    whole = network.losses(pictures, [one, other], seeds=[1, 2], total=lambda count: 5.0)["loss_mask"]
    parts = [
        network.losses([picture], [known], seeds=[seed], total=lambda count: 5.0)["loss_mask"]
        for picture, known, seed in zip(pictures, [one, other], [1, 2], strict=True)
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)
