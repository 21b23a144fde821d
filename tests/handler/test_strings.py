"""COCO's compressed strings, against those of pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskx_masks import run_length_strings


def strings_of(masks: list[list[int]]) -> list[str]:
    counts = np.array([run for runs in masks for run in runs], dtype=np.int64)
    return run_length_strings(counts, np.cumsum([0, *map(len, masks)]))


def theirs(runs: list[int]) -> str:
    # Whatever the size, it reads the counts only. It keeps 6 characters a number, and none for the zero byte behind
    # them: numbers from 2 ** 29 would break its memory, and so a number of one character is added, and cut off.
    assert all(run < 1 << 29 for run in runs)
    more = [*runs, runs[-2] if len(runs) > 2 else 0]
    text: bytes = coco_mask.frPyObjects({"size": [1, 1], "counts": more}, 1, 1)["counts"]
    assert text.endswith(b"0")
    return text[:-1].decode()


def numbers_in(text: str) -> list[int]:
    """Run lengths from a string, by its definition; Python's integers have no greatest."""
    runs: list[int] = []
    number = shift = 0
    for character in text:
        group = ord(character) - 48
        number |= (group & 31) << shift
        shift += 5
        if group & 32 == 0:
            number -= (group & 16) << (shift - 4)
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    assert shift == 0
    return runs


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ([0], "0"),
        ([15], "?"),
        ([16], "`0"),
        ([12], "<"),
        ([3, 3, 6], "336"),
        ([3, 3, 6, 3, 6], "33600"),
        ([3, 3, 6, 2], "336O"),
        ([3, 20, 6, 4], "3d06@"),
        ([3, 20, 6, 3], "3d06_O"),
        ([0, 10, 0, 20, 0, 30, 0, 1], "0:0:0:0SO"),
    ],
)
def test_strings_are_those_of_the_definition(runs: list[int], text: str) -> None:
    assert strings_of([runs]) == [text] == [theirs(runs)]


short = st.integers(0, 40)
limits = st.tuples(st.sampled_from([1 << (4 + 5 * k) for k in range(5)]), st.integers(-2, 2)).map(sum)
any_run = st.one_of(short, limits, st.integers(0, 2**29 - 1))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(any_run, max_size=8), max_size=6))
def test_strings_of_any_batch_are_those_of_pycocotools(masks: list[list[int]]) -> None:
    assert strings_of(masks) == [theirs(runs) for runs in masks]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.one_of(short, st.integers(0, 2**62)), max_size=6), max_size=5))
def test_strings_of_runs_beyond_32_bits_hold_the_runs(masks: list[list[int]]) -> None:
    assert [numbers_in(text) for text in strings_of(masks)] == masks


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_strings_of_drawn_masks_are_those_that_pycocotools_encodes(
    height: int, width: int, seed: int, share: float
) -> None:
    masks = np.random.default_rng(seed).random((3, height, width)) < share
    runs = []
    for mask in masks:
        flat = mask.T.reshape(-1)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], flat)))).tolist()
        runs.append(np.diff(np.array([0, *edges, flat.size])).tolist())
    expected = [
        coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode() for mask in masks
    ]
    assert strings_of(runs) == expected


def test_runs_are_not_changed_and_no_masks_have_no_strings() -> None:
    counts, offsets = np.array([3, 3, 6, 3, 6, 12]), np.array([0, 5, 5, 6])
    assert run_length_strings(counts, offsets) == ["33600", "", "<"]
    assert counts.tolist() == [3, 3, 6, 3, 6, 12]
    assert offsets.tolist() == [0, 5, 5, 6]
    assert run_length_strings(np.zeros(0, np.int64), np.zeros(1, np.int64)) == []
    assert run_length_strings(np.zeros(0, np.int64), np.zeros(3, np.int64)) == ["", ""]
