"""One copy in and one out, through memory that is kept: the GPU's way, with the CPU's tensors for a device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import maskx_model
from maskx_answer import Detections
from maskx_forward import predict_each
from maskx_image import DecodedImage
from maskx_model import InPlace, KeptCopies, ServedModel, copies_for
from maskx_parameters import Parameters
from tests.handler.packed_standin import write_packed_standin
from tests.served.standin import scene, write_standin

CPU = torch.device("cpu")
WISHES = Parameters(score_threshold=0.5, max_detections=10)
REDS = [scene(width=30 + i, red=(i, 2, 9, 7)) for i in range(6)]


class Device:
    """In CUDA's place: writes down what memory is asked for, what is marked and what is waited for."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._marks = 0

    def allocate(self, count: int) -> Tensor:
        self.log.append(f"allocate {count}")
        return torch.zeros(count, dtype=torch.uint8)

    def mark(self) -> Callable[[], None]:
        self._marks += 1
        number = self._marks
        self.log.append(f"mark {number}")
        return lambda: self.log.append(f"wait {number}")

    def copies(self) -> KeptCopies:
        return KeptCopies(CPU, allocate=self.allocate, mark=self.mark)


class CopiesSeen(TorchDispatchMode):
    """Counts copies between tensors."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.copy_.default
        return func(*args, **(kwargs or {}))


def test_a_batch_of_unequal_images_is_one_copy_and_keeps_its_order_and_its_tensors() -> None:
    there = torch.from_numpy(scene(width=7, green=(1, 1, 3, 3)))
    turned = np.rot90(REDS[2])  # not contiguous
    device = Device()
    with CopiesSeen() as seen:
        images = device.copies().inwards([REDS[0], there, turned, REDS[5]])
    assert seen.count == 1
    assert images[1] is there
    for image, expected in zip(images, [REDS[0], there.numpy(), turned, REDS[5]], strict=True):
        np.testing.assert_array_equal(image.numpy(), expected)
    assert len({image.untyped_storage().data_ptr() for image in images}) == 2


def test_images_that_lie_on_the_device_already_are_not_copied() -> None:
    device = Device()
    images = [torch.zeros(2, 3, 3, dtype=torch.uint8)] * 2
    assert device.copies().inwards(images) == images and device.log == []


def test_memory_is_written_to_again_only_after_its_copy_was_waited_for_and_grows_with_the_largest() -> None:
    device = Device()
    copies = device.copies()
    for count in (1, 1, 6, 2):
        copies.inwards([np.zeros((10, 10, 3), np.uint8)] * count)
    assert device.log == [
        *["allocate 512", "mark 1"],
        *["wait 1", "mark 2"],
        *["wait 2", "allocate 2048", "mark 3"],
        *["wait 3", "mark 4"],
    ]


def test_words_are_waited_for_and_stay_when_the_next_come() -> None:
    device = Device()
    copies = device.copies()
    with CopiesSeen() as seen:
        first = copies.outwards(torch.arange(5, dtype=torch.int32))
    assert seen.count == 1 and device.log == ["allocate 32", "mark 1", "wait 1"]
    copies.outwards(torch.zeros(5, dtype=torch.int32))
    assert first.dtype == np.int32 and first.tolist() == [0, 1, 2, 3, 4]
    assert copies.outwards(torch.zeros(0, dtype=torch.int32)).tolist() == []


def test_a_batch_above_the_most_that_is_kept_goes_through_ordinary_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(maskx_model, "MOST_KEPT", 1000)
    device = Device()
    (image,) = device.copies().inwards([scene()])
    np.testing.assert_array_equal(image.numpy(), scene())
    assert not any(line.startswith("allocate") for line in device.log)


def test_on_a_cpu_nothing_is_copied() -> None:
    copies = copies_for(CPU)
    assert isinstance(copies, InPlace)
    words = torch.arange(3, dtype=torch.int32)
    assert copies.outwards(words).ctypes.data == words.data_ptr()
    assert copies.inwards([REDS[0]])[0].data_ptr() == REDS[0].ctypes.data


def test_a_gpu_gets_the_kept_copies() -> None:
    assert isinstance(copies_for(torch.device("cuda", 0)), KeptCopies)


@pytest.fixture(params=[write_packed_standin, write_standin])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> ServedModel:
    """A file that packs and one that does not, each with the GPU's copies."""
    model = ServedModel(request.param(tmp_path / "maskx.pt"), CPU, precision="float32")
    model._copies = Device().copies()
    return model


def places(found: list[Any]) -> list[Any]:
    return [int(one.boxes[0, 0]) if isinstance(one, Detections) else one.kind.name for one in found]


def tried(model: ServedModel) -> list[Any]:
    images = [DecodedImage(pixels=one, height=one.shape[0], width=one.shape[1]) for one in REDS]
    return places(predict_each(model, images, [WISHES] * len(images)))


def test_answers_come_through_the_gpus_copies_whole_batch_after_batch(model: ServedModel) -> None:
    first = model.predict(REDS, [WISHES] * 6)
    assert tried(model) == places(first) == list(range(6))


class Failing:
    """Copies of which one way has no memory for more than `most` images, or whatever more than so many words are."""

    def __init__(self, copies: Any, way: str, most: int) -> None:
        self._copies, self._way, self._most = copies, way, most
        self.failures = 0

    def inwards(self, images: Any) -> Any:
        self._fail(len(images), "inwards")
        return self._copies.inwards(images)

    def outwards(self, words: Tensor) -> Any:
        self._fail(words.numel(), "outwards")
        return self._copies.outwards(words)

    def _fail(self, count: int, way: str) -> None:
        if way == self._way and count > self._most:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(("way", "most"), [("inwards", 2), ("outwards", 60), ("network", 2)])
def test_memory_that_runs_out_in_either_copy_or_in_the_network_costs_nobody_an_answer(
    tmp_path: Path, way: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ServedModel(write_packed_standin(tmp_path / "maskx.pt"), CPU, precision="float32")
    copies = Failing(Device().copies(), way, most)
    model._copies = copies
    if way == "network":
        module = model._module

        class Network:
            def packed(self, images: list[Tensor], *others: Any) -> Any:
                copies._fail(len(images), "network")
                return module.packed(images, *others)

        monkeypatch.setattr(model, "_module", Network())
    assert tried(model) == list(range(6))
    assert copies.failures >= 2


@pytest.mark.parametrize("way", ["inwards", "outwards", "network"])
def test_where_there_is_no_memory_even_for_one_each_is_told_so(tmp_path: Path, way: str) -> None:
    model = ServedModel(write_packed_standin(tmp_path / "maskx.pt"), CPU, precision="float32")
    copies = Failing(Device().copies(), way, 0)
    model._copies = copies
    if way == "network":

        class Network:
            def packed(self, *arguments: Any) -> Any:
                copies._fail(1, "network")

        model._module = Network()
    assert tried(model) == ["OutOfMemory"] * 6
