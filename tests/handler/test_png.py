"""PNGs of masks, as Pillow reads them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskx_masks import png_masks
from tests.handler.masks import blob, drawn_masks, run_lengths_of


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
