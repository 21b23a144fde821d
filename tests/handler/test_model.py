"""maskx.pt in memory: what is refused; answers packed in one tensor, and the same as without; one copy in and one out,
through memory that is kept: the GPU's way, with the CPU's tensors for a device."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import maskx_model
from maskx_answer import Detections
from maskx_engine import frozen, prepared
from maskx_forward import predict_each
from maskx_image import DecodedImage
from maskx_model import InPlace, KeptCopies, ServedModel, copies_for, unpack
from maskx_parameters import Parameters
from tests.handler.packed_standin import write_packed_standin
from tests.served.standin import METADATA, scene, write_standin

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version 2, this handler reads 1; export the checkpoint"),
        ({"categories": None}, "lacks \\['categories'\\]"),
    ],
)
def test_metadata_that_is_not_understood_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    metadata = {name: value for name, value in {**METADATA, **change}.items() if value is not None}
    path = write_standin(tmp_path / "maskx.pt", metadata)
    with pytest.raises(ValueError, match=message):
        ServedModel(path, CPU)


def test_a_file_that_is_no_torchscript_or_has_no_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "maskx.pt"
    path.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"maskx\.pt cannot be loaded as TorchScript"):
        ServedModel(path, CPU)
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(path))
    with pytest.raises(ValueError, match=r"no metadata\.json inside"):
        ServedModel(path, CPU)


FINITE = st.floats(-1e6, 1e6, width=32)


@st.composite
def answers(draw: st.DrawFn) -> tuple[int, list[Detections], list[int]]:
    """K, what was found in each image of a batch, and how many strange words lie before each of its parts."""
    keypoints = draw(st.integers(0, 3))

    def lists(values: st.SearchStrategy[Any], size: int) -> list[Any]:
        return draw(st.lists(values, min_size=size, max_size=size))

    found = []
    for count in draw(st.lists(st.integers(0, 4), max_size=4)):
        runs: list[list[int]] = [[]] * count
        if draw(st.booleans()):
            runs = lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), count)
        floats = np.array(lists(FINITE, count * (5 + 3 * keypoints)), np.float32)
        found.append(
            Detections(
                boxes=floats[: 4 * count].reshape(count, 4),
                scores=floats[4 * count : 5 * count],
                labels=np.array(lists(st.integers(1, 3000), count), np.int64),
                rle_counts=np.array([one for mask in runs for one in mask], np.int64),
                rle_offsets=np.cumsum([0, *(len(mask) for mask in runs)], dtype=np.int64),
                keypoints=floats[5 * count :].reshape(count, keypoints, 3) if keypoints else None,
            )
        )
    return keypoints, found, draw(st.lists(st.integers(0, 3), min_size=24, max_size=24))


def packed(found: list[Detections], gaps: list[int]) -> tuple[np.ndarray, list[list[int]]]:
    """Words and table of the answers, with words of nobody between the parts."""
    words: list[np.ndarray] = []
    table = []
    gap = iter(gaps)

    def put(values: np.ndarray) -> int:
        words.append(np.full(next(gap), -7, np.int32))
        words.append(values.reshape(-1))
        return sum(len(one) for one in words) - values.size

    for one in found:
        masks = len(one.labels) > 0 and len(one.rle_counts) > 0
        row = [len(one.labels), put(one.boxes.view(np.int32)), put(one.scores.view(np.int32))]
        row.append(put(one.labels.astype(np.int32)))
        row += [put(x.astype(np.int32)) for x in (one.rle_offsets, one.rle_counts)] if masks else [-1, -1]
        row.append(-1 if one.keypoints is None else put(one.keypoints.copy().view(np.int32)))
        table.append(row)
    return np.concatenate([np.zeros(0, np.int32), *words]), table


def assert_same(one: Detections, other: Detections) -> None:
    for (name, expected), got in zip(asdict(one).items(), asdict(other).values(), strict=True):
        assert (expected is None) == (got is None), name
        if expected is not None:
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape), name
            np.testing.assert_array_equal(got, expected, name)


@given(answers())
def test_what_was_packed_comes_out_with_the_types_of_detections(
    drawn: tuple[int, list[Detections], list[int]],
) -> None:
    keypoints, found, gaps = drawn
    got = unpack(*packed(found, gaps), keypoints)
    assert len(got) == len(found)
    for one, other in zip(found, got, strict=True):
        assert_same(one, other)


def test_an_image_without_masks_has_no_counts_and_offsets_of_zero() -> None:
    boxes = np.arange(8, dtype=np.float32).view(np.int32)
    words = np.concatenate([boxes, boxes[:2], np.array([3, 4], np.int32)])
    (one,) = unpack(words, [[2, 0, 8, 10, -1, -1, -1]], 0)
    assert one.labels.tolist() == [3, 4] and one.rle_offsets.tolist() == [0, 0, 0]
    assert one.rle_counts.size == 0 and one.keypoints is None


IMAGES = [
    scene(red=(1, 1, 5, 5), green=(10, 10, 5, 5)),
    scene(width=50, blue=(20, 10, 6, 6)),
    scene(),
    scene(red=(3, 3, 9, 9)),
]
ALL = Parameters(score_threshold=0.5, max_detections=10)
OF_EACH = [ALL, ALL, ALL, Parameters(score_threshold=0.5, max_detections=10, mask_format="none")]


def test_a_file_that_packs_answers_as_the_one_that_does_not(tmp_path: Path) -> None:
    plain = ServedModel(write_standin(tmp_path / "a.pt"), CPU, precision="float32").predict(IMAGES, OF_EACH)
    packs = ServedModel(write_packed_standin(tmp_path / "b.pt"), CPU, precision="float32")
    assert [len(one.labels) for one in plain] == [2, 1, 0, 1]
    for one, other in zip(plain, packs.predict(IMAGES, OF_EACH), strict=True):
        assert_same(one, other)


def test_keypoints_are_taken_from_the_words_by_the_number_that_the_file_names(tmp_path: Path) -> None:
    model = ServedModel(write_packed_standin(tmp_path / "b.pt", keypoints=2), CPU, precision="float32")
    found = model.predict(IMAGES, OF_EACH)
    points = found[0].keypoints
    assert points is not None and points.shape == (2, 2, 3) and points.dtype == np.float32
    assert points[0].tolist() == [[1, 1, 6], [2, 2, 7]]
    assert found[2].keypoints is not None and found[2].keypoints.shape == (0, 2, 3)


@pytest.mark.parametrize(("device", "expected"), [("cpu", 0), ("meta", 1)])
def test_a_network_that_knows_both_ways_is_told_the_devices_before_it_is_frozen(
    tmp_path: Path, device: str, expected: int
) -> None:
    """The stand-in begins its words with one of nobody's where it goes the GPU's way."""
    module: Any = torch.jit.load(str(write_packed_standin(tmp_path / "b.pt")))
    ready = frozen(prepared(module.eval(), torch.device(device), "float32", ()))
    assert not hasattr(ready, "batched"), "not frozen"
    arguments = (
        [torch.from_numpy(IMAGES[0]).permute(2, 0, 1)],
        torch.tensor([[30, 40]]),
        torch.tensor([0.5]),
        torch.tensor([10]),
        torch.ones(1, 4, dtype=torch.bool),
        torch.tensor([True]),
    )
    _, table = ready.packed(*arguments)
    assert table[0][1] == expected


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


def test_on_a_cpu_nothing_is_copied_and_a_gpu_gets_the_kept_copies() -> None:
    assert isinstance(copies_for(torch.device("cuda", 0)), KeptCopies)
    copies = copies_for(CPU)
    assert isinstance(copies, InPlace)
    words = torch.arange(3, dtype=torch.int32)
    assert copies.outwards(words).ctypes.data == words.data_ptr()
    assert copies.inwards([REDS[0]])[0].data_ptr() == REDS[0].ctypes.data


@pytest.fixture(params=[write_packed_standin, write_standin])
def copying(request: pytest.FixtureRequest, tmp_path: Path) -> ServedModel:
    """A file that packs and one that does not, each with the GPU's copies."""
    model = ServedModel(request.param(tmp_path / "maskx.pt"), CPU, precision="float32")
    model._copies = Device().copies()
    return model


def places(found: list[Any]) -> list[Any]:
    return [int(one.boxes[0, 0]) if isinstance(one, Detections) else one.kind.name for one in found]


def tried(model: ServedModel) -> list[Any]:
    images = [DecodedImage(pixels=one, height=one.shape[0], width=one.shape[1]) for one in REDS]
    return places(predict_each(model, images, [ALL] * len(images)))


def test_answers_come_through_the_gpus_copies_whole_batch_after_batch(copying: ServedModel) -> None:
    first = copying.predict(REDS, [ALL] * 6)
    assert tried(copying) == places(first) == list(range(6))


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


@pytest.mark.parametrize(
    ("way", "most", "answers"),
    [
        ("inwards", 2, list(range(6))),
        ("outwards", 60, list(range(6))),
        ("network", 2, list(range(6))),
        *((way, 0, ["OutOfMemory"] * 6) for way in ("inwards", "outwards", "network")),
    ],
)
def test_memory_that_runs_out_anywhere_costs_nobody_an_answer_unless_there_is_none_for_one_image(
    tmp_path: Path, way: str, most: int, answers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ServedModel(write_packed_standin(tmp_path / "maskx.pt"), CPU, precision="float32")
    copies = Failing(Device().copies(), way, most)
    module = model._module

    class Network:
        def packed(self, images: list[Tensor], *others: Any) -> Any:
            copies._fail(len(images), "network")
            return module.packed(images, *others)

    monkeypatch.setattr(model, "_copies", copies)
    monkeypatch.setattr(model, "_module", Network())
    assert tried(model) == answers
    assert copies.failures >= 2


def test_what_the_masks_were_learned_from_is_known_and_described_where_the_file_says_it(
    tmp_path: Path,
) -> None:
    told = ServedModel(write_standin(tmp_path / "now.pt"), torch.device("cpu"))
    assert [one.mask_source for one in told.categories.values()] == ["masks", "taught", "masks"]
    assert told.description()["mask_sources"] == {"masks": 2, "taught": 1}
    categories = [
        {key: value for key, value in one.items() if key != "mask_source"} for one in METADATA["categories"]
    ]
    path = write_standin(tmp_path / "before.pt", {**METADATA, "categories": categories})
    of_before = ServedModel(path, torch.device("cpu"))
    assert {one.mask_source for one in of_before.categories.values()} == {None}
    assert "mask_sources" not in of_before.description()
