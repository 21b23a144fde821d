"""All answers of a batch in one tensor: taken apart, and the same as without."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskx_answer import Detections
from maskx_model import ServedModel, unpack
from maskx_parameters import Parameters
from tests.handler.packed_standin import write_packed_standin
from tests.served.standin import scene, write_standin

CPU = torch.device("cpu")
FINITE = st.floats(-1e6, 1e6, width=32)


@st.composite
def answers(draw: st.DrawFn) -> tuple[int, list[Detections], list[int]]:
    """K, what was found in each image of a batch, and how many strange words lie before each of its parts."""
    keypoints = draw(st.integers(0, 3))
    found = []
    for count in draw(st.lists(st.integers(0, 4), max_size=4)):
        runs: list[list[int]] = [[0] * 0] * count
        masks = draw(st.booleans())
        if masks:
            runs = draw(
                st.lists(
                    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5),
                    min_size=count,
                    max_size=count,
                )
            )
        floats = np.array(
            draw(
                st.lists(FINITE, min_size=count * (5 + 3 * keypoints), max_size=count * (5 + 3 * keypoints))
            ),
            np.float32,
        )
        found.append(
            Detections(
                boxes=floats[: 4 * count].reshape(count, 4),
                scores=floats[4 * count : 5 * count],
                labels=np.array(
                    draw(st.lists(st.integers(1, 3000), min_size=count, max_size=count)), np.int64
                ),
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
    (one,) = unpack(
        np.concatenate([boxes, boxes[:2], np.array([3, 4], np.int32)]), [[2, 0, 8, 10, -1, -1, -1]], 0
    )
    assert (
        one.labels.tolist() == [3, 4] and one.rle_offsets.tolist() == [0, 0, 0] and one.rle_counts.size == 0
    )
    assert one.keypoints is None


IMAGES = [
    scene(red=(1, 1, 5, 5), green=(10, 10, 5, 5)),
    scene(width=50, blue=(20, 10, 6, 6)),
    scene(),
    scene(red=(3, 3, 9, 9)),
]
ALL = Parameters(score_threshold=0.5, max_detections=10)
WISHES = [ALL, ALL, ALL, Parameters(score_threshold=0.5, max_detections=10, mask_format="none")]


def test_a_file_that_packs_answers_as_the_one_that_does_not(tmp_path: Path) -> None:
    plain = ServedModel(write_standin(tmp_path / "a.pt"), CPU, precision="float32").predict(IMAGES, WISHES)
    packs = ServedModel(write_packed_standin(tmp_path / "b.pt"), CPU, precision="float32")
    assert [len(one.labels) for one in plain] == [2, 1, 0, 1]
    for one, other in zip(plain, packs.predict(IMAGES, WISHES), strict=True):
        assert_same(one, other)


def test_keypoints_are_taken_from_the_words_by_the_number_that_the_file_names(tmp_path: Path) -> None:
    model = ServedModel(write_packed_standin(tmp_path / "b.pt", keypoints=2), CPU, precision="float32")
    found = model.predict(IMAGES, WISHES)
    points = found[0].keypoints
    assert points is not None and points.shape == (2, 2, 3) and points.dtype == np.float32
    assert points[0].tolist() == [[1, 1, 6], [2, 2, 7]]
    assert found[2].keypoints is not None and found[2].keypoints.shape == (0, 2, 3)


@pytest.mark.parametrize(("device", "expected"), [("cpu", 0), ("meta", 1)])
def test_a_network_that_knows_both_ways_is_told_the_devices_before_it_is_frozen(
    tmp_path: Path, device: str, expected: int
) -> None:
    """The stand-in begins its words with one of nobody's where it goes the GPU's way."""
    from maskx_engine import ready_to_run

    module: Any = torch.jit.load(str(write_packed_standin(tmp_path / "b.pt")))
    ready = ready_to_run(module.eval(), torch.device(device), "float32", ())
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
