"""What a step of training asks of the device: few waits of the host, and hardly more operations for more images.

Seen on the CPU: what stands for the device here is every tensor that a parameter, or what is moved to the device, has
had a part in. The rest belongs to the host, which reads its own numbers without waiting.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import model.boxes.ground_truth
from model.masks.box_only import BoxOnly
from model.network import MaskXRCNN, Stage
from model.targets import Target
from tests.model.keypoints.test_head import CONFIG
from tests.model.operations import Operations
from tests.model.small_network import SMALL, image, small_network, target

FEW = 5


@contextmanager
def watched(network: MaskXRCNN, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operations]:
    device = Operations([*network.parameters(), *network.buffers()])
    real = model.boxes.ground_truth.moved

    def moved(tensors: Sequence[Tensor], to: torch.device) -> list[Tensor]:
        on_device = [tensor.clone() for tensor in real(tensors, to)]
        device.take(on_device)
        return on_device

    monkeypatch.setattr(model.boxes.ground_truth, "moved", moved)
    with device:
        yield device
    monkeypatch.undo()


def batch(count: int, **changes: Any) -> tuple[list[Tensor], list[Target]]:
    images, targets = [], []
    for i in range(count):
        known = target(i % 4, seed=i, image_id=i, with_masks=[k % 2 == 0 for k in range(i % 4)])
        if i % 3 == 2:
            known["crowd_boxes"] = torch.tensor([[40.0, 40, 60, 60]])
        if changes.get("keypoints"):
            known["keypoints"] = torch.rand(i % 4, 3, 3) * 40
            known["mirrored"] = torch.arange(3)
        images.append(image(48 + i, 64, seed=i))
        targets.append(known)
    return images[::-1], targets[::-1]


def step(
    network: MaskXRCNN, count: int, monkeypatch: pytest.MonkeyPatch, box_only: BoxOnly | None = None
) -> Operations:
    images, targets = batch(count, keypoints=network.keypoint_branch is not None)
    with watched(network, monkeypatch) as device:
        losses = network.losses(images, targets, box_only, seeds=list(range(count)))
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    return device


def on_gpu(**changes: Any) -> MaskXRCNN:
    network = small_network(**changes).train()
    network.batched = True
    return network


@pytest.mark.parametrize("stage", ["end_to_end", "detector", "mask", "classes"])
def test_the_host_waits_once_a_step_whatever_the_batch(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    network = on_gpu()
    network.set_stage(stage)
    waits = {count: step(network, count, monkeypatch).waits for count in (1, 2, 8)}
    assert waits == {1: {"tolist": 1}, 2: {"tolist": 1}, 8: {"tolist": 1}}


def test_masks_on_ground_truth_need_no_wait_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    network = on_gpu(mask=dataclasses.replace(SMALL.mask, train_on="ground_truth", jitter=0.1))
    network.set_stage("mask")
    assert [step(network, count, monkeypatch).waits for count in (1, 8)] == [{}, {}]


def test_every_option_together_waits_a_few_times_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = on_gpu(num_classes=140, keypoints=CONFIG)
    teacher = on_gpu(num_classes=140).requires_grad_(False)
    box_only = BoxOnly(colour_threshold=0.3, margin=0.1, teacher=teacher)
    waits = [step(network, count, monkeypatch, box_only).waits for count in (2, 8)]
    assert waits[0] == waits[1] and waits[1].total() <= FEW


@pytest.mark.parametrize("focal", [False, True])
def test_eight_images_take_hardly_more_operations_than_two(
    focal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss: Literal["focal", "cross_entropy"] = "focal" if focal else "cross_entropy"
    network = on_gpu(
        rpn=dataclasses.replace(SMALL.rpn, loss=loss), box=dataclasses.replace(SMALL.box, loss=loss)
    )
    operations = {count: step(network, count, monkeypatch).total for count in (1, 2, 8)}
    assert operations[8] <= 1.3 * operations[2]


def test_the_count_sees_the_waits_of_a_cpus_way(monkeypatch: pytest.MonkeyPatch) -> None:
    network = on_gpu()
    network.batched = False
    waits = [step(network, count, monkeypatch).waits for count in (2, 8)]
    assert "nonzero" in waits[0] and "nms" in waits[0] and waits[1].total() > 2 * waits[0].total()
    with watched(network, monkeypatch) as device:
        weight = network.box_predictor.cls_score.bias.detach()
        (
            weight[weight > -1],
            weight.unique(),
            weight.sum().item(),
            weight.cpu(),
            weight.numpy(),
            bool(weight[0] > 0),
        )
        torch.tensor([1.0]).item()
    assert device.waits.total() >= 6
