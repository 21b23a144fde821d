"""Image bytes of every kind become upright RGB; bytes that are no image are refused in words."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from maskx_image import ImageError, decode, exif_orientation, read_header
from tests.pictures import encoded, exif

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_rgb_comes_out_as_it_went_in() -> None:
    pixels = decode(encoded(Image.fromarray(RGB)))
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"] and pixels.flags["WRITEABLE"]
    assert np.array_equal(pixels, RGB)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG", "JPEG2000"])
def test_every_format_gives_its_size_and_about_its_colours(kind: str) -> None:
    flat = Image.new("RGB", (16, 8), (200, 100, 50))
    pixels = decode(encoded(flat, kind))
    assert pixels.shape == (8, 16, 3)
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_each_exif_orientation_is_turned_upright(kind: str, orientation: int) -> None:
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(RGB), kind, exif=exif(orientation), **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if orientation > 4:
        assert expected.shape == (9, 6, 3)
    assert np.array_equal(decode(data), expected)
    header = read_header(io.BytesIO(data))
    assert header.upright_size == (expected.shape[1], expected.shape[0])


def test_a_jpeg_of_a_phone_held_sideways_is_upright_and_its_stored_pixels_can_be_asked_for() -> None:
    data = encoded(Image.fromarray(RGB), "JPEG", exif=exif(6))
    assert decode(data).shape == (9, 6, 3)
    stored = decode(data, upright=False)
    assert stored.shape == (6, 9, 3)
    assert np.array_equal(np.rot90(stored, -1), decode(data))
    header = read_header(io.BytesIO(data))
    assert (header.width, header.height, header.orientation, header.format) == (9, 6, 6, "JPEG")


def test_png_orientation_behind_the_pixels_is_found_by_header_and_decoder() -> None:
    plain = encoded(Image.fromarray(RGB))
    end = png_chunk(b"IEND", b"")
    assert plain.endswith(end)
    data = plain[: -len(end)] + png_chunk(b"eXIf", exif(8).removeprefix(b"Exif\x00\x00")) + end
    assert decode(data).shape == (9, 6, 3)
    assert read_header(io.BytesIO(data)).orientation == 8


def test_exif_blocks_that_are_broken_or_silent_mean_upright() -> None:
    block = exif(6).removeprefix(b"Exif\x00\x00")
    assert exif_orientation(block) == 6
    assert exif_orientation(b"") == 1
    assert exif_orientation(exif(9)) == 1
    for length in range(len(block)):
        assert exif_orientation(block[:length]) in (1, 6)


@given(st.binary(max_size=64))
def test_no_exif_block_makes_the_reader_fail(block: bytes) -> None:
    for start in (b"", b"II*\x00", b"MM\x00*"):
        assert 1 <= exif_orientation(start + block) <= 8


def test_grey_bilevel_and_palette_become_rgb() -> None:
    grey = Image.fromarray(RGB[..., 0])
    assert np.array_equal(decode(encoded(grey)), np.repeat(RGB[..., :1], 3, axis=2))
    bilevel = grey.convert("1")
    assert np.array_equal(decode(encoded(bilevel)), np.asarray(bilevel.convert("RGB")))
    palette = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.array_equal(decode(encoded(palette)), np.asarray(palette.convert("RGB")))


def test_transparency_shows_white() -> None:
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    rgba[0, :, 3] = 0
    rgba[1, :, 3] = 128
    pixels = decode(encoded(Image.fromarray(rgba)))
    assert (pixels[0] == 255).all()
    blend = (RGB[1].astype(int) * 128 + 255 * 127) / 255
    assert np.abs(pixels[1] - blend).max() <= 1
    assert np.array_equal(pixels[2:], RGB[2:])


def test_transparent_grey_palette_and_colour_key_show_white() -> None:
    grey_alpha = Image.fromarray(np.dstack([RGB[..., 0], np.zeros(RGB.shape[:2], np.uint8)]), "LA")
    assert (decode(encoded(grey_alpha)) == 255).all()
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (decode(encoded(palette, transparency=1)) == 255).all()
    assert (decode(encoded(palette, transparency=b"\xff\x00")) == 255).all()
    assert (decode(encoded(palette, transparency=0)) == (10, 20, 30)).all()
    keyed = Image.new("RGB", (4, 3), (1, 2, 3))
    assert (decode(encoded(keyed, transparency=(1, 2, 3))) == 255).all()


def test_cmyk_becomes_the_colour_it_prints() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    for kind in ("JPEG", "TIFF"):
        pixels = decode(encoded(cyan, kind)).astype(int)
        assert np.abs(pixels - (0, 255, 255)).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_not_cut_off(kind: str) -> None:
    ramp = np.array([[0, 128, 129, 257, 32_768, 65_535]], dtype=np.uint16)
    pixels = decode(encoded(Image.fromarray(ramp), kind))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert (pixels == pixels[..., :1]).all()


def test_32_bit_integers_are_clipped_to_16_bits() -> None:
    values = np.array([[-5, 0, 65_535, 100_000]], dtype=np.int32)
    assert decode(encoded(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 0, 255, 255]
    values[0, 3] = 1_000_000  # so they were no 16 bits
    assert decode(encoded(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 0, 17, 255]


def test_floating_point_is_read_as_a_fraction_or_as_levels() -> None:
    fraction = np.array([[0.0, 0.5, 1.0, np.nan]], dtype=np.float32)
    assert decode(encoded(Image.fromarray(fraction), "TIFF"))[0, :, 0].tolist() == [0, 128, 255, 0]
    levels = np.array([[-1.0, 0.5, 200.4, 300.0]], dtype=np.float32)
    assert decode(encoded(Image.fromarray(levels), "TIFF"))[0, :, 0].tolist() == [0, 0, 200, 255]


def picture(mode: str) -> bytes:
    """13 x 9 pixels of one of Pillow's modes, as a file that is read back in that mode."""
    ramp = np.arange(13 * 9, dtype=np.int32).reshape(9, 13)
    if mode in ("I", "I;16", "F"):
        kind = {"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]
        return encoded(Image.fromarray((ramp / 116 if mode == "F" else ramp * 500).astype(kind)), "TIFF")
    colours = np.stack([ramp, 255 - ramp, ramp * 2, 255 - 2 * ramp], axis=-1).astype(np.uint8)
    rgb = Image.fromarray(colours[..., :3])
    if mode == "P":
        return encoded(rgb.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", transparency=b"\x80" * 40)
    if mode == "RGB":
        return encoded(rgb, "PNG", transparency=(0, 255, 0))
    return encoded(Image.fromarray(colours) if mode == "RGBA" else rgb.convert(mode), "TIFF")


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "LA", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"]
)
def test_an_image_of_many_strips_is_that_of_one(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture(mode)
    assert read_header(io.BytesIO(data)).mode == mode
    whole = decode(data)
    assert len(np.unique(whole)) > 1
    for pixels in (1, 26, 30, 104):  # strips of 1, 2, 2, 8 of 9 rows
        monkeypatch.setattr("maskx_image.STRIP_PIXELS", pixels)
        assert np.array_equal(decode(data), whole)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_strips_are_turned_to_where_they_belong(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(RGB), exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    for pixels in (1, 18, 36):  # strips of 1, 2, 4 of 6 rows
        monkeypatch.setattr("maskx_image.STRIP_PIXELS", pixels)
        assert np.array_equal(decode(data), expected)


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello, I am no image at all", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image|broken"),
        (b"\xff\xd8\xff\xe0", "not an image|broken"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_bytes_that_are_no_image_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_image_cut_short_is_refused(kind: str) -> None:
    data = encoded(
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind
    )
    with pytest.raises(ImageError):
        decode(data[: len(data) * 2 // 3])


def test_the_header_of_a_half_image_can_still_be_read() -> None:
    data = encoded(Image.fromarray(np.zeros((64, 48, 3), np.uint8)), "JPEG")
    assert read_header(io.BytesIO(data[: len(data) - 40])).upright_size == (48, 64)


def test_limits_are_checked_before_decoding() -> None:
    """The pixels are missing: an error about the size can only come from the header."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 40_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="too large: 50000 x 40000"):
        decode(bomb)
    with pytest.raises(ImageError, match="broken"):
        decode(bomb, max_pixels=10**10, max_side=10**5)


def test_limits_hold_at_exactly_the_given_number() -> None:
    data = encoded(Image.fromarray(RGB))
    assert decode(data, max_pixels=54, max_side=9).shape == (6, 9, 3)
    with pytest.raises(ImageError, match="at most 53 pixels"):
        decode(data, max_pixels=53, max_side=9)
    with pytest.raises(ImageError, match="8 to a side"):
        decode(data, max_pixels=54, max_side=8)


@settings(max_examples=60)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]), st.data())
def test_flipped_bytes_give_an_image_or_an_image_error(kind: str, choice: st.DataObject) -> None:
    data = bytearray(encoded(Image.fromarray(RGB), kind))
    for _ in range(choice.draw(st.integers(1, 4))):
        data[choice.draw(st.integers(0, len(data) - 1))] = choice.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(data), max_pixels=10**6, max_side=10**4)
    except ImageError:
        return
    except Warning:  # Pillow's own words about a broken directory, an error only because tests make it one
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3


def test_a_jpeg_of_more_scans_than_any_encoder_writes_is_refused_before_it_is_decoded() -> None:
    """Each scan is a pass over all pixels for 31 bytes: 100 KB of them would keep a decoder busy for half a minute."""
    whole = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    assert decode(whole[:-2] + scan * 40 + whole[-2:]).shape == (64, 64, 3)
    with pytest.raises(ImageError, match="110 scans, at most 64 are read"):
        decode(whole[:-2] + scan * 100 + whole[-2:])
