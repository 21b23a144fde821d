"""Overlays made on the server, beside those that the client makes of the same answer."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskx_answer import OVERLAY_SIDE, Detections, image_content, overlay_png
from maskx_draw import draw_detections
from maskx_errors import ANSWER_TOO_LARGE, MaskxError
from maskx_parameters import Category
from tests.handler.masks import blob, run_lengths_of

CATEGORIES = {
    1: Category(id=3, name="cat", mask_supervised=True),
    2: Category(id=8, name="dog", mask_supervised=False),
}


def found_in(height: int, width: int, mask_format: str = "rle") -> dict[str, Any]:
    masks = []
    for seed, part in enumerate(np.array_split(np.arange(width), 2)):
        mask = np.zeros((height, width), bool)
        mask[:, part] = blob(seed, height, len(part), 4)
        masks.append(mask)
    counts, offsets = run_lengths_of(masks)
    boxes = [[0, 0, width / 2, height], [width / 2, 0, width, height]]
    detections = Detections(
        boxes=np.array(boxes, np.float32),
        scores=np.array([0.9, 0.5], np.float32),
        labels=np.array([1, 2]),
        rle_counts=counts,
        rle_offsets=offsets,
    )
    return image_content(detections, CATEGORIES, height=height, width=width, mask_format=mask_format)


def photograph(height: int, width: int, *, noisy: bool = False) -> np.ndarray:
    if noisy:
        return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.indices((height, width))
    return np.stack([y * 255 // height, x * 255 // width, np.full_like(y, 90)], axis=2).astype(np.uint8)


def read(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return image


@pytest.mark.parametrize("size", [(90, 120), (639, 400), (700, 900), (1600, 30)])
def test_an_image_within_the_limits_gives_the_picture_that_the_client_draws(size: tuple[int, int]) -> None:
    pixels, content = photograph(*size), found_in(*size)
    data = overlay_png(pixels, content, height=size[0], width=size[1], max_bytes=10**7)
    client = draw_detections(Image.fromarray(pixels), content["detections"], legend=True)
    assert (np.asarray(read(data)) == np.asarray(client)).all()


def test_every_mask_format_gives_the_same_picture_where_polygons_are_exact_and_none_has_no_mask() -> None:
    size = (60, 80)
    datas = [
        overlay_png(photograph(*size), found_in(*size, mask_format), height=60, width=80, max_bytes=10**7)
        for mask_format in ("rle", "png", "none")
    ]
    assert datas[0] == datas[1] != datas[2]


def test_a_large_image_is_drawn_at_the_limit_with_everything_where_it_belongs() -> None:
    height, width = 1500, 2400
    content = found_in(height, width)
    data = overlay_png(photograph(height, width), content, height=height, width=width, max_bytes=10**7)
    picture = read(data)
    assert picture.size == (OVERLAY_SIDE, 1000)
    client = draw_detections(Image.fromarray(photograph(height, width)), content["detections"], legend=True)
    small = np.asarray(client.resize(picture.size, Image.Resampling.BOX), int)
    assert (np.abs(np.asarray(picture, int) - small).max(axis=2) > 40).mean() < 0.05


def test_pixels_that_the_decoder_scaled_down_are_drawn_over_in_their_own_size() -> None:
    content = found_in(2000, 1600)
    for one in content["detections"]:
        one["mask_supervised"] = True  # stripes have a width of their own in each size
    scaled, whole = photograph(1000, 800), photograph(2000, 1600)
    picture = read(overlay_png(scaled, content, height=2000, width=1600, max_bytes=10**7))
    assert picture.size == (800, 1000)
    large = draw_detections(Image.fromarray(whole), content["detections"], legend=True)
    small = np.asarray(large.resize(picture.size, Image.Resampling.BOX), int)
    assert (np.abs(np.asarray(picture, int) - small).max(axis=2) > 60).mean() < 0.05


@pytest.mark.parametrize("max_bytes", [3_000_000, 300_000, 30_000, 6_000])
def test_an_overlay_shrinks_until_it_fits_and_not_much_more(max_bytes: int) -> None:
    data = overlay_png(
        photograph(900, 1200, noisy=True), found_in(900, 1200), height=900, width=1200, max_bytes=max_bytes
    )
    assert max_bytes / 4 < len(data) <= max_bytes
    assert read(data).width / read(data).height == pytest.approx(4 / 3, rel=0.05)


def test_a_small_image_is_sent_as_it_is_before_it_is_made_smaller() -> None:
    pixels, content = photograph(90, 120, noisy=True), found_in(90, 120)
    enlarged = overlay_png(pixels, content, height=90, width=120, max_bytes=10**7)
    assert read(enlarged).size == (720, 540)
    assert read(overlay_png(pixels, content, height=90, width=120, max_bytes=40_000)).size == (120, 90)
    assert read(overlay_png(pixels, content, height=90, width=120, max_bytes=20_000)).width < 120


def test_room_for_no_picture_is_an_error_that_says_so_and_a_tiny_image_needs_little() -> None:
    with pytest.raises(MaskxError, match="more than the 50 bytes.*ask for output=json") as raised:
        overlay_png(photograph(90, 120), found_in(90, 120), height=90, width=120, max_bytes=50)
    assert raised.value.kind is ANSWER_TOO_LARGE
    tiny = overlay_png(photograph(1, 1), {"image": {}, "detections": []}, height=1, width=1, max_bytes=10_000)
    assert read(tiny).size == (640, 640)
    assert read(
        overlay_png(photograph(1, 1), {"image": {}, "detections": []}, height=1, width=1, max_bytes=100)
    ).size == (1, 1)
