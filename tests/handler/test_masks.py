"""The forms of masks: COCO's strings against those of pycocotools, PNGs as Pillow reads them."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from maskx_masks import png_masks, run_length_strings
from tests.handler.masks import blob, drawn_masks, run_lengths_of


def strings_of(masks: list[list[int]]) -> list[str]:
    counts = np.array([run for runs in masks for run in runs], dtype=np.int64)
    return run_length_strings(counts, np.cumsum([0, *map(len, masks)]))


def by_pycocotools(runs: list[int]) -> str:
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
    assert strings_of([runs]) == [text] == [by_pycocotools(runs)]


short = st.integers(0, 40)
limits = st.tuples(st.sampled_from([1 << (4 + 5 * k) for k in range(5)]), st.integers(-2, 2)).map(sum)
any_run = st.one_of(short, limits, st.integers(0, 2**29 - 1))


@settings(max_examples=400)
@given(st.lists(st.lists(any_run, max_size=8), max_size=6))
def test_strings_of_any_batch_are_those_of_pycocotools(masks: list[list[int]]) -> None:
    assert strings_of(masks) == [by_pycocotools(runs) for runs in masks]


@settings(max_examples=200)
@given(st.lists(st.lists(st.one_of(short, st.integers(0, 2**62)), max_size=6), max_size=5))
def test_strings_of_runs_beyond_32_bits_hold_the_runs(masks: list[list[int]]) -> None:
    assert [numbers_in(text) for text in strings_of(masks)] == masks


@settings(max_examples=100)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_strings_of_drawn_masks_are_those_that_pycocotools_encodes(
    height: int, width: int, seed: int, share: float
) -> None:
    masks = np.random.default_rng(seed).random((3, height, width)) < share
    expected = [
        coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode() for mask in masks
    ]
    assert run_length_strings(*run_lengths_of(list(masks))) == expected


def test_runs_are_not_changed_and_no_masks_have_no_strings() -> None:
    counts, offsets = np.array([3, 3, 6, 3, 6, 12]), np.array([0, 5, 5, 6])
    assert run_length_strings(counts, offsets) == ["33600", "", "<"]
    assert counts.tolist() == [3, 3, 6, 3, 6, 12]
    assert offsets.tolist() == [0, 5, 5, 6]
    assert run_length_strings(np.zeros(0, np.int64), np.zeros(1, np.int64)) == []
    assert run_length_strings(np.zeros(0, np.int64), np.zeros(3, np.int64)) == ["", ""]


def opened(one: dict[str, Any]) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(one["png"], validate=True)))
    image.load()
    return image


def placed(one: dict[str, Any], height: int, width: int) -> np.ndarray:
    x, y, w, h = one["bbox"]
    whole = np.zeros((height, width), bool)
    whole[y : y + h, x : x + w] = np.asarray(opened(one))
    return whole


@settings(max_examples=300)
@given(drawn_masks())
def test_any_mask_comes_back_from_its_png_and_window(masks: list[np.ndarray]) -> None:
    height, width = masks[0].shape if masks else (1, 1)
    counts, offsets = run_lengths_of(masks)
    found = png_masks(counts, offsets, height=height)
    assert len(found) == len(masks)
    for mask, one in zip(masks, found, strict=True):
        assert (placed(one, height, width) == mask).all()


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 300))
def test_a_png_has_one_bit_a_pixel_and_only_the_window(seed: int, height: int, width: int) -> None:
    mask = blob(seed, height, width, 4)
    counts, offsets = run_lengths_of([mask])
    one = png_masks(counts, offsets, height=height)[0]
    image = opened(one)
    assert (image.format, image.mode) == ("PNG", "1")
    assert all(type(value) is int for value in one["bbox"])
    assert image.size == tuple(one["bbox"][2:])
    if mask.any():
        y, x = np.nonzero(mask)
        assert one["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
    assert (placed(one, height, width) == mask).all()


@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 17])
def test_rows_that_do_not_end_with_a_byte_are_padded(width: int) -> None:
    mask = np.ones((3, width), bool)
    mask[1, -1] = False
    counts, offsets = run_lengths_of([mask])
    assert (np.asarray(opened(png_masks(counts, offsets, height=3)[0])) == mask).all()


def test_a_mask_without_a_pixel_is_one_black_pixel() -> None:
    empty, one = png_masks(*run_lengths_of([np.zeros((5, 7), bool), np.eye(5, 7, dtype=bool)]), height=5)
    assert empty["bbox"] == [0, 0, 1, 1] and np.asarray(opened(empty)).tolist() == [[False]]
    assert one["bbox"] == [0, 0, 5, 5]
    assert png_masks(np.zeros(0, np.int64), np.zeros(1, np.int64), height=5) == []
