"""One way in, one way out: the staged way on CPU tensors gives the images and answers of the plain one."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.files import METADATA_NAME
from export.metadata import build_metadata, metadata_json
from maskx_answer import Detections
from maskx_copies import Copies, unpacked
from maskx_model import ServedModel
from maskx_request import Wishes
from model.serving import prepared_for_serving
from tests.export.tiny import CLASSES, tiny_network

CPU = torch.device("cpu")


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (5 + 3 * k, 9 - k, 3), dtype=np.uint8) for k in range(count)]


@pytest.mark.parametrize("staged", [False, True])
def test_images_arrive_as_they_are_whatever_came_before(staged: bool) -> None:
    copies = Copies(CPU, staged=staged)
    for count, seed in ((2, 0), (4, 1), (1, 2), (0, 3)):
        images = pictures(count, seed)
        there = copies.images_in(images)
        assert [tuple(one.shape) for one in there] == [(3, *image.shape[:2]) for image in images]
        for one, image in zip(there, images, strict=True):
            assert one.dtype == torch.uint8 and np.array_equal(one.permute(1, 2, 0).numpy(), image)


def test_on_a_cpu_no_pixel_is_copied_and_staged_all_go_in_one_piece() -> None:
    images = pictures(3)
    plain = Copies(CPU).images_in(images)
    assert [one.data_ptr() for one in plain] == [image.ctypes.data for image in images]
    there = Copies(CPU, staged=True).images_in(images)
    assert len({one.untyped_storage().data_ptr() for one in there}) == 1
    assert all(one.data_ptr() % 64 == there[0].data_ptr() % 64 for one in there)


def test_an_image_that_is_on_the_device_already_stays_there() -> None:
    first, second = pictures(2)
    on_device = torch.from_numpy(second.copy())
    there = Copies(CPU, staged=True).images_in([first, on_device, first])
    assert there[1].data_ptr() == on_device.data_ptr()
    assert torch.equal(there[0], there[2]) and there[0].shape == (3, *first.shape[:2])


def test_the_buffers_are_kept_and_grow() -> None:
    copies = Copies(CPU, staged=True)
    places = []
    for size in (10, 1000, 20):
        numbers = torch.arange(size, dtype=torch.float64)
        answer = copies.out(numbers)
        assert np.array_equal(answer, numbers.numpy())
        places.append(answer.ctypes.data)
    assert places[0] != places[1] == places[2]
    assert Copies(CPU).out(numbers).ctypes.data == numbers.data_ptr()


@given(st.data())
def test_what_was_packed_comes_out_again(data: st.DataObject) -> None:
    keypoints = data.draw(st.sampled_from([0, 2]))
    numbers: list[float] = [-7.0]  # nothing begins at 0 here
    table, expected = [], []
    for _ in range(data.draw(st.integers(0, 4))):
        count, masks = data.draw(st.integers(0, 4)), data.draw(st.booleans())
        floats = st.floats(-1e4, 1e4, width=32)
        boxes = data.draw(st.lists(floats, min_size=4 * count, max_size=4 * count))
        scores = data.draw(st.lists(floats, min_size=count, max_size=count))
        labels = data.draw(st.lists(st.integers(1, 3000), min_size=count, max_size=count))
        points = data.draw(st.lists(floats, min_size=3 * keypoints * count, max_size=3 * keypoints * count))
        runs = [
            data.draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=5)) for _ in range(count * masks)
        ]
        before = data.draw(st.lists(st.integers(0, 9), max_size=3)) if masks else []
        row = [count]
        ends = np.cumsum([len(before), *(len(one) for one in runs)])
        counts = before + [value for one in runs for value in one]
        for piece in (boxes, scores, labels, ends.tolist() if masks else None, counts if masks else None):
            row.append(len(numbers) if piece is not None else -1)
            numbers += piece or []
        row.append(len(numbers) if keypoints else -1)
        numbers += points
        table.append(row)
        expected.append((boxes, scores, labels, runs if masks else None, points))
    found = unpacked(np.array(numbers, dtype=np.float64), table, keypoints=keypoints)
    for one, (boxes, scores, labels, of_masks, points) in zip(found, expected, strict=True):
        assert one.boxes.dtype == one.scores.dtype == np.float32 and one.labels.dtype == np.int64
        assert one.boxes.flatten().tolist() == boxes and one.scores.tolist() == scores
        assert one.labels.tolist() == labels and one.rle_counts.dtype == one.rle_offsets.dtype == np.int64
        if of_masks is None:
            assert one.rle_counts.size == 0 and one.rle_offsets.tolist() == [0] * (len(labels) + 1)
        else:
            ends = one.rle_offsets
            assert [one.rle_counts[a:b].tolist() for a, b in itertools.pairwise(ends)] == of_masks
            assert ends[0] == 0 and ends[-1] == len(one.rle_counts)
        assert (one.keypoints is None) == (keypoints == 0)
        if one.keypoints is not None:
            assert one.keypoints.shape == (len(labels), keypoints, 3)
            assert one.keypoints.flatten().tolist() == points


def served(network: torch.nn.Module, folder: Path) -> ServedModel:
    path = folder / "maskx.pt"
    metadata = build_metadata(CLASSES, mask_size=14, max_detections=30, min_size=64, max_size=96)
    scripted = torch.jit.script(network.eval())
    torch.jit.save(scripted, str(path), _extra_files={METADATA_NAME: metadata_json(metadata)})
    return ServedModel(path, CPU, precision="float32")


def test_a_model_answers_the_same_staged_and_from_a_file_without_packed(tmp_path: Path) -> None:
    network = prepared_for_serving(tiny_network().inference())
    model = served(network, tmp_path)
    images = [np.random.default_rng(k).integers(0, 256, (64, 70 + k, 3), dtype=np.uint8) for k in range(3)]
    wishes = [
        Wishes(score_threshold=0.0, max_detections=9),
        Wishes(score_threshold=0.0, max_detections=5, mask_format="none"),
        Wishes(score_threshold=1.0, max_detections=9),
    ]
    expected = model.predict(images, wishes)
    assert [len(one.labels) > 0 for one in expected] == [True, True, False]
    model._copies = Copies(CPU, staged=True)
    require_equal(model.predict(images, wishes), expected)
    older = served(Forward(network), tmp_path)
    assert hasattr(model._module, "packed") and not hasattr(older._module, "packed")
    require_equal(older.predict(images, wishes), expected)


class Forward(torch.nn.Module):
    """A file of before there was `packed`."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self,
        images: list[torch.Tensor],
        sizes: torch.Tensor,
        score: torch.Tensor,
        most: torch.Tensor,
        classes: torch.Tensor,
        masks: torch.Tensor,
    ) -> list[dict[str, torch.Tensor]]:
        answers: list[dict[str, torch.Tensor]] = self.inner(images, sizes, score, most, classes, masks)
        return answers


def require_equal(found: list[Detections], expected: list[Detections]) -> None:
    for one, other in zip(found, expected, strict=True):
        for name, value in vars(other).items():
            got = vars(one)[name]
            assert (got is None and value is None) or (
                got.dtype == value.dtype and np.array_equal(got, value)
            )
