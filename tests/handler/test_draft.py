"""A JPEG decoded small for the network: never below what the network wants, and the same picture."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskx_image import DecodedImage, ImageError, decode, decode_to_fit, fitted_size
from model.canvas import resized_size
from tests.pictures import encoded, exif


def smooth(width: int, height: int) -> Image.Image:
    """A picture that differs in every corner and has no detail finer than a 20th of its side."""
    rough = np.random.default_rng(5).integers(40, 216, (20, 20, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, *, orientation: int = 1, **options: Any) -> bytes:
    return encoded(image, "JPEG", quality=90, exif=exif(orientation), **options)


def reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """The mean of every factor x factor square, float64."""
    h, w = pixels.shape[0] // factor, pixels.shape[1] // factor
    return pixels[: h * factor, : w * factor].reshape(h, factor, w, factor, 3).mean(axis=(1, 3))


def assert_close(decoded: DecodedImage, full: np.ndarray, factor: int) -> None:
    """`decoded` shows `full` at 1 / factor, last rows and columns that are not whole left out."""
    expected = reduced(full, factor)
    h, w = expected.shape[:2]
    assert decoded.pixels.shape == (-(-full.shape[0] // factor), -(-full.shape[1] // factor), 3)
    assert (decoded.height, decoded.width) == full.shape[:2]
    difference = np.abs(decoded.pixels[:h, :w] - expected)
    assert difference.mean() < 1.5
    assert difference.max() < 16


SIDES = st.integers(1, 700)


@settings(max_examples=150)
@given(SIDES, SIDES, st.integers(1, 120), st.floats(1.0, 3.0), st.integers(1, 8))
@example(1601, 1203, 200, 1.7, 6)
@example(16, 16_000, 100, 1.5, 1)
@example(9, 700, 4, 1.0, 5)
def test_a_drafted_image_is_never_below_what_the_network_makes_of_the_original(
    width: int, height: int, min_size: int, ratio: float, orientation: int
) -> None:
    max_size = int(min_size * ratio)
    data = jpeg(Image.new("L", (width, height), 100), orientation=orientation)
    decoded = decode_to_fit(data, min_size=min_size, max_size=max_size)
    upright = (width, height) if orientation >= 5 else (height, width)
    assert (decoded.height, decoded.width) == upright
    height, width = upright
    h, w = decoded.pixels.shape[:2]
    target = resized_size(height, width, min_size, max_size)
    # The last that fits, for a side of one pixel has that at every scale.
    factor = [f for f in (1, 2, 4, 8) if (h, w) == (-(-height // f), -(-width // f))][-1]
    if (h, w) != (height, width):
        assert target[0] <= h and target[1] <= w
        again = resized_size(h, w, min_size, max_size)  # what the network makes of this
        assert again[0] <= h and again[1] <= w
    # No smaller one would have done.
    assert factor == 8 or height < 2 * factor * target[0] or width < 2 * factor * target[1]


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 2000), st.integers(1, 3000))
def test_the_decoder_and_the_network_agree_on_the_size_that_is_wanted(
    height: int, width: int, min_size: int, max_size: int
) -> None:
    assert fitted_size(height, width, min_size=min_size, max_size=max_size) == resized_size(
        height, width, min_size, max_size
    )


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(("min_size", "factor"), [(130, 2), (65, 4), (33, 8), (20, 8)])
def test_the_drafted_picture_is_the_full_one_scaled_down(
    orientation: int, min_size: int, factor: int
) -> None:
    data = jpeg(smooth(363, 266), orientation=orientation)
    decoded = decode_to_fit(data, min_size=min_size, max_size=400)
    turns = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    full = np.rot90(decode(data, upright=False), turns)
    # Squares are counted from the first stored pixel: turned back, that pixel is the first again.
    stored = DecodedImage(
        pixels=np.rot90(decoded.pixels, -turns),
        height=decoded.width if turns % 2 else decoded.height,
        width=decoded.height if turns % 2 else decoded.width,
    )
    assert np.array_equal(full, decode(data))
    assert_close(stored, decode(data, upright=False), factor)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"progressive": True, "subsampling": 2}]
)
def test_grey_and_cmyk_and_progressive_pictures_keep_their_colours(
    mode: str, options: dict[str, Any]
) -> None:
    data = jpeg(smooth(320, 240).convert(mode), **options)
    decoded = decode_to_fit(data, min_size=60, max_size=100)
    assert_close(decoded, decode(data), 4)
    if mode == "L":
        assert (decoded.pixels == decoded.pixels[..., :1]).all()


def test_a_phones_file_of_two_pictures_is_drafted_and_the_first_is_taken() -> None:
    """Many phones write MPO, JPEGs one behind the other: the photograph and its depth or preview."""
    behind = [Image.new("RGB", (320, 240))]
    data = encoded(smooth(320, 240), "MPO", save_all=True, append_images=behind, quality=90)
    assert_close(decode_to_fit(data, min_size=100, max_size=200), decode(data), 2)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000"])
def test_other_formats_are_decoded_in_full(kind: str) -> None:
    data = encoded(smooth(160, 120), kind)
    decoded = decode_to_fit(data, min_size=10, max_size=20)
    assert (decoded.height, decoded.width) == (120, 160)
    assert np.array_equal(decoded.pixels, decode(data))


@pytest.mark.parametrize(("min_size", "max_size"), [(121, 1000), (240, 161), (800, 1333)])
def test_a_jpeg_that_the_network_would_not_halve_keeps_every_pixel(min_size: int, max_size: int) -> None:
    data = jpeg(smooth(320, 240))
    decoded = decode_to_fit(data, min_size=min_size, max_size=max_size)
    assert np.array_equal(decoded.pixels, decode(data))
    halved = decode_to_fit(data, min_size=120, max_size=160)
    assert halved.pixels.shape == (120, 160, 3)  # else nothing is shown


@pytest.mark.parametrize("min_size", [10, 800])
def test_what_comes_out_is_contiguous_and_writable(min_size: int) -> None:
    for orientation in range(1, 9):
        data = jpeg(smooth(90, 70), orientation=orientation)
        pixels = decode_to_fit(data, min_size=min_size, max_size=1333).pixels
        assert pixels.dtype == np.uint8
        assert pixels.flags["C_CONTIGUOUS"] and pixels.flags["WRITEABLE"] and pixels.flags["OWNDATA"]


def test_limits_are_those_of_the_original_and_come_before_decoding() -> None:
    """Cut behind the header: an error about the size can only come from it. The draft itself would be allowed."""
    whole = jpeg(smooth(400, 300))
    start = whole[: whole.index(b"\xff\xda") + 20]
    for limits in ({"max_pixels": 119_999}, {"max_side": 399}):
        with pytest.raises(ImageError, match="too large: 400 x 300"):
            decode_to_fit(start, min_size=20, max_size=40, **limits)
    with pytest.raises(ImageError, match="cut short"):
        decode_to_fit(start, min_size=20, max_size=40, max_pixels=120_000, max_side=400)
    assert decode_to_fit(whole, min_size=20, max_size=40, max_pixels=120_000, max_side=400).width == 400


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("min_size", [20, 60, 800])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_jpeg_cut_short_is_refused_at_every_scale(progressive: bool, min_size: int, share: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    data = jpeg(Image.fromarray(noise), progressive=progressive)
    with pytest.raises(ImageError, match="cut short"):
        decode_to_fit(data[: int(len(data) * share)], min_size=min_size, max_size=1333)
