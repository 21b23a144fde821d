"""What a step of training asks of the device: few waits of the host, and hardly more operations for more images.

Seen on the CPU: what stands for the device here is every tensor that a parameter, or what is moved to the device, has
had a part in. The rest belongs to the host, which reads its own numbers without waiting.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

import model.ground_truth
from model.box_only import BoxOnly
from model.network import MaskXRCNN, Stage
from model.targets import Target
from tests.model.small_network import SMALL, image, small_network, target
from tests.model.test_keypoint_branch import CONFIG

SIZE_DEPENDS_ON_VALUES = (
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "unique",
    "_unique2",
    "unique_dim",
    "nms",
    "bincount",
)
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
READS = {Tensor.tolist, Tensor.cpu, Tensor.numpy}
FEW = 5


class Device(TorchDispatchMode):
    """Counts operations, and notes those for whose answer a host would wait."""

    def __init__(self, network: MaskXRCNN) -> None:
        super().__init__()
        self.operations = 0
        self.waits: list[str] = []
        self._mine = WeakIdKeyDictionary()
        self.take([*network.parameters(), *network.buffers()])

    def take(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self._mine[tensor] = True

    def has(self, *values: Any) -> bool:
        return any(isinstance(v, Tensor) and v in self._mine for v in tree_leaves(values))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.operations += 1
        mine = self.has(args, kwargs or {})
        if mine:
            self.take([v for v in tree_leaves(answer) if isinstance(v, Tensor)])
        by_bool = name in INDEXING and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        open_size = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        reads_values = name in SIZE_DEPENDS_ON_VALUES or name == "_local_scalar_dense"
        if mine and (reads_values or by_bool or open_size):
            self.waits.append(name)
        return answer


class Reads(TorchFunctionMode):
    """Notes where numbers of the device are asked for as a whole, which dispatches nothing on a CPU."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in READS and self.device.has(args[0]):
            self.device.waits.append(func.__name__)
            if func is Tensor.tolist:  # else it would be seen once more for every number
                return args[0].detach().numpy().tolist()
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(network: MaskXRCNN, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    device = Device(network)
    real = model.ground_truth.moved

    def moved(tensors: Sequence[Tensor], to: torch.device) -> list[Tensor]:
        on_device = [tensor.clone() for tensor in real(tensors, to)]
        device.take(on_device)
        return on_device

    monkeypatch.setattr(model.ground_truth, "moved", moved)
    with device, Reads(device):
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
) -> Device:
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
    assert waits == {1: ["tolist"], 2: ["tolist"], 8: ["tolist"]}


def test_masks_on_ground_truth_need_no_wait_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    network = on_gpu(mask=dataclasses.replace(SMALL.mask, train_on="ground_truth", jitter=0.1))
    network.set_stage("mask")
    assert [step(network, count, monkeypatch).waits for count in (1, 8)] == [[], []]


def test_every_option_together_waits_a_few_times_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = on_gpu(num_classes=140, keypoints=CONFIG)
    teacher = on_gpu(num_classes=140).requires_grad_(False)
    box_only = BoxOnly(colour_threshold=0.3, margin=0.1, teacher=teacher)
    waits = [step(network, count, monkeypatch, box_only).waits for count in (2, 8)]
    assert waits[0] == waits[1] and len(waits[1]) <= FEW


@pytest.mark.parametrize("focal", [False, True])
def test_eight_images_take_hardly_more_operations_than_two(
    focal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss: Literal["focal", "cross_entropy"] = "focal" if focal else "cross_entropy"
    network = on_gpu(
        rpn=dataclasses.replace(SMALL.rpn, loss=loss), box=dataclasses.replace(SMALL.box, loss=loss)
    )
    operations = {count: step(network, count, monkeypatch).operations for count in (1, 2, 8)}
    assert operations[8] <= 1.3 * operations[2]


def test_the_count_sees_the_waits_of_a_cpus_way(monkeypatch: pytest.MonkeyPatch) -> None:
    network = on_gpu()
    network.batched = False
    waits = [step(network, count, monkeypatch).waits for count in (2, 8)]
    assert "nonzero" in waits[0] and "nms" in waits[0] and len(waits[1]) > 2 * len(waits[0])
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
    assert len(device.waits) >= 6
