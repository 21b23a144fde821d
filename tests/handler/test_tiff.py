"""TIFFs that Pillow has no mode for, written here by hand, and what other files are called."""

import contextlib
import importlib.util
import io
import struct
import zlib
from itertools import product
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskx_image import ImageError, checked_header, decode
from maskx_tiff import MOST_BYTES, Tiff, TiffError

HEIGHT, WIDTH = 37, 52
SHARES = np.random.default_rng(0).random((HEIGHT, WIDTH, 6))
"""What the bands show, 0 black and 1 white."""
LEVELS = np.rint(SHARES * 255)
KINDS = {"u": 1, "i": 2, "f": 3}


def tiff(
    values: np.ndarray,
    *,
    order: Literal["<", ">"] = "<",
    bits: int = 0,
    packed: bool = False,
    predictor: int = 1,
    apart: bool = False,
    tile: int = 0,
    rows: int = 7,
    photometric: int | None = None,
    big: bool = False,
    **tags: tuple[int, ...],
) -> bytes:
    """A TIFF of values [height, width, bands]: strips of `rows`, or square tiles, bands together or apart.

    `tags`: further tags of SHORT, by their numbers with a t before ("t281").
    """
    height, width, bands = values.shape
    bits = bits or values.dtype.itemsize * 8
    planes = [values[:, :, [band]] for band in range(bands)] if apart else [values]
    high, wide = (tile, tile) if tile else (rows, width)
    parts = []
    for plane in planes:
        for top, left in product(range(0, height, high), range(0, width, wide)):
            part = plane[top : top + high, left : left + wide]
            if tile:
                part = np.pad(part, ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)))
            if predictor == 2:
                part = np.diff(part, axis=1, prepend=np.zeros_like(part[:, :1]))
            if bits != values.dtype.itemsize * 8:
                flat = part.reshape(part.shape[0], -1).astype(np.uint32)
                bit_rows = (flat[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
                raw = np.packbits(bit_rows.reshape(part.shape[0], -1).astype(np.uint8), axis=1).tobytes()
            elif predictor == 3:
                places = np.ascontiguousarray(part.astype(part.dtype.newbyteorder(">"))).view(np.uint8)
                places = places.reshape(part.shape[0], -1, part.dtype.itemsize).transpose(0, 2, 1)
                at = places.reshape(part.shape[0], -1, part.shape[2])
                raw = np.diff(at, axis=1, prepend=np.zeros_like(at[:, :1])).tobytes()
            else:
                raw = part.astype(part.dtype.newbyteorder(order)).tobytes()
            parts.append(zlib.compress(raw) if packed else raw)
    start = 16 if big else 8
    offsets = [start + sum(map(len, parts[:n])) for n in range(len(parts))]
    entries: dict[int, tuple[str, tuple[int, ...]]] = {
        256: ("I", (width,)),
        257: ("I", (height,)),
        258: ("H", (bits,) * bands),
        259: ("H", (8 if packed else 1,)),
        262: ("H", ((2 if bands >= 3 else 1) if photometric is None else photometric,)),
        277: ("H", (bands,)),
        284: ("H", (2 if apart else 1,)),
        317: ("H", (predictor,)),
        339: ("H", (KINDS[values.dtype.kind],) * bands),
    }
    if tile:
        entries |= {322: ("H", (tile,)), 323: ("H", (tile,)), 324: ("I", tuple(offsets))}
        entries[325] = ("I", tuple(map(len, parts)))
    else:
        entries |= {278: ("I", (rows,)), 273: ("I", tuple(offsets)), 279: ("I", tuple(map(len, parts)))}
    entries |= {int(name[1:]): ("H", numbers) for name, numbers in tags.items()}
    body = b"".join(parts)
    body += bytes(len(body) % 2)
    directory_at = start + len(body)
    word, room = ("Q", 8) if big else ("I", 4)
    after = directory_at + (8 if big else 2) + len(entries) * (20 if big else 12) + room
    lines, behind = b"", b""
    for tag, (letter, numbers) in sorted(entries.items()):
        content = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        kind = {"H": 3, "I": 4}[letter]
        lines += struct.pack(f"{order}HH{word}", tag, kind, len(numbers))
        lines += (
            content.ljust(room, b"\0")
            if len(content) <= room
            else struct.pack(order + word, after + len(behind))
        )
        behind += content if len(content) > room else b""
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head = magic + (
        struct.pack(order + "HHQ", 8, 0, directory_at) if big else struct.pack(order + "I", directory_at)
    )
    count = struct.pack(order + ("Q" if big else "H"), len(entries))
    return head + body + count + lines + bytes(room) + behind


def numbers(kind: str, bands: int, bits: int = 0) -> np.ndarray:
    shares = SHARES[:, :, :bands]
    if kind[0] == "f":
        return shares.astype(kind)
    white = 2**bits - 1 if bits else np.iinfo(np.dtype(kind)).max
    return np.rint(shares * white).astype(kind)


def shown(bands: int) -> np.ndarray:
    """What is to be seen: the first three bands, or the first as grey."""
    return LEVELS[:, :, :3] if bands >= 3 else np.repeat(LEVELS[:, :, :1], 3, axis=2)


def close(data: bytes, expected: np.ndarray, off: int = 1) -> bool:
    pixels = decode(data)
    return pixels.shape == expected.shape and bool(np.abs(pixels - expected).max() <= off)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"])
def test_any_number_of_bands_of_any_kind_is_as_bright_as_it_was_meant(kind: str, bands: int) -> None:
    values = numbers(kind, bands)
    extra: dict[str, Any] = (
        {"t338": (0,) * (bands - 3 if bands >= 3 else bands - 1)} if bands not in (1, 3) else {}
    )
    off = 2 if kind == "i1" else 1  # it has half the levels
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        assert close(tiff(values, order=order, **extra), shown(bands), off)
        assert close(tiff(values, order=order, apart=True, **extra), shown(bands), off)
    assert close(tiff(values, big=True, packed=True, tile=16, **extra), shown(bands), off)


@pytest.mark.parametrize(
    ("kind", "predictor"), [("u2", 1), ("u2", 2), ("i2", 1), ("i2", 2), ("f4", 1), ("f4", 3)]
)
@pytest.mark.parametrize("tile", [0, 16])
def test_packed_strips_and_tiles_with_any_predictor_are_undone(kind: str, predictor: int, tile: int) -> None:
    for bands, apart in ((1, False), (4, False), (4, True)):
        extra: dict[str, Any] = {"t338": (0,)} if bands == 4 else {}
        data = tiff(numbers(kind, bands), predictor=predictor, packed=True, tile=tile, apart=apart, **extra)
        assert close(data, shown(bands))


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15])
def test_packed_bits_of_cameras_and_scanners_use_the_whole_range(bits: int) -> None:
    for bands in (1, 3):
        assert close(tiff(numbers("u2", bands, bits), bits=bits), shown(bands))


def test_the_largest_value_that_the_file_names_is_white() -> None:
    """A camera of 12 bits whose numbers are stored in 16."""
    values = numbers("u2", 1, 12)
    assert close(tiff(values, t281=(4095,)), shown(1))
    assert decode(tiff(values)).max() <= 16  # else the tag would not have mattered


def test_floating_point_is_scaled_by_what_it_holds() -> None:
    values = SHARES[:, :, :3].astype(np.float32)
    for white in (1.0, 255.0, 65_535.0, 1e7):
        assert close(tiff(values / values.max() * white), SHARES[:, :, :3] / SHARES[:, :, :3].max() * 255)
    values[0, 0] = np.nan, np.inf, -np.inf
    assert decode(tiff(values))[0, 0].tolist() == [0, 0, 0]


def test_numbers_of_32_bits_are_read_as_16_where_none_is_larger() -> None:
    values = numbers("u2", 1).astype(np.uint32)
    assert close(tiff(values), shown(1))


def test_a_band_of_transparency_is_laid_over_white_and_white_may_be_0() -> None:
    values = numbers("u2", 4)
    values[:, :26, 3], values[:, 26:, 3] = 0, 65_535
    pixels = decode(tiff(values, t338=(2,), t281=(65_535,)))
    assert (pixels[:, :26] == 255).all() and np.abs(pixels[:, 26:] - LEVELS[:, 26:, :3]).max() <= 1
    assert close(tiff(numbers("f4", 1), photometric=0), 255 - shown(1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_turned_upright_as_others_are(orientation: int) -> None:
    eight = Image.fromarray(LEVELS[:, :, :3].astype(np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    eight.save(file, "PNG", exif=exif)
    data = tiff(numbers("u2", 6), t274=(orientation,), t338=(0, 0, 0))
    assert close(data, decode(file.getvalue()).astype(float))
    assert checked_header(data).upright_size == decode(data).shape[1::-1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            tiff(numbers("f4", 3), photometric=32803),
            "TIFF of photometric interpretation 32803 with 3 bands of 32 bits",
        ),
        (tiff(numbers("f4", 3), t259=(7,)), "a TIFF packed as JPEG with 3 bands"),
        (tiff(numbers("u2", 4), t258=(16, 16, 16, 8)), "16 bits, which differ|8/16 bits"),
        (tiff(numbers("f4", 3), t339=(6, 6, 6)), "complex, which is not read; send it as JPEG or PNG"),
        (
            tiff(numbers("f4", 3), packed=True).replace(b"x\x9c", b"\0\0"),
            "the TIFF image is broken or cut short",
        ),
    ],
)
def test_a_tiff_that_is_not_read_says_what_it_is(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data)


def test_bands_that_would_need_too_much_memory_are_refused_before_they_are_unpacked() -> None:
    small = tiff(np.zeros((1, 1, 6), np.float64), rows=1)
    data = small.replace(struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 256, 4, 1, 16_384))
    data = data.replace(struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, 4096))
    data = data.replace(struct.pack("<HHII", 278, 4, 1, 1), struct.pack("<HHII", 278, 4, 1, 4096))
    with pytest.raises(ImageError, match=f"16384 x 4096 pixels with 6 bands .* more than {MOST_BYTES} bytes"):
        decode(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_of_its_directory_give_an_image_or_an_image_error(choice: Any) -> None:
    data = bytearray(
        tiff(numbers("f4", 4)[:9, :16], packed=True, tile=16 if choice.draw(st.booleans()) else 0)
    )
    begin = len(data) - 330
    for _ in range(choice.draw(st.integers(1, 6))):
        data[choice.draw(st.integers(begin, len(data) - 1))] = choice.draw(st.integers(0, 255))
    with contextlib.suppress(
        ImageError, Warning
    ):  # Pillow's own words on a broken directory, an error in tests alone
        assert decode(bytes(data), max_pixels=10_000).ndim == 3


def test_what_is_no_tiff_is_told_from_one() -> None:
    for data in (b"", b"II*", b"PNG and so on", b"II*\0\xff\xff\xff\xff"):
        with pytest.raises(TiffError):
            Tiff(data)


OTHER_FILES = {
    "PDF": b"%PDF-1.7\n",
    "SVG": b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="http://www.w3.org/2000/svg">',
    "an HTML page": b"\n<!DOCTYPE html><html><head>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50),
    "a file of Photoshop": b"8BPS\0\1" + bytes(50),
    "DICOM": bytes(128) + b"DICM" + bytes(50),
    "a ZIP archive": b"PK\3\4" + bytes(50),
    "packed with gzip": b"\x1f\x8b\x08" + bytes(50),
    "an array of NumPy": b"\x93NUMPY\1\0" + bytes(50),
    "a raw file of a camera": b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(50),
    "a video": b"\0\0\0\x18ftypisom\0\0\0\1isommp42" + bytes(50),
    "nothing but zeros": bytes(500),
    "XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "text": b"Not found",
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_that_is_no_image_is_named(name: str) -> None:
    with pytest.raises(ImageError, match=f"not an image that can be read, but {name}.*; known are JPEG, PNG"):
        decode(OTHER_FILES[name])


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_is_read_where_the_plug_in_is_and_named_where_not(brand: bytes) -> None:
    data = b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(300)
    there = importlib.util.find_spec("pillow_heif") is not None
    with pytest.raises(
        ImageError, match="HEI[CF] image is broken" if there else "is HEI[CF].*JPEG or PNG, or install"
    ):
        decode(data)
    if there:
        file = io.BytesIO()
        Image.fromarray(LEVELS[:, :, :3].astype(np.uint8)).resize((64, 64)).save(file, "HEIF", quality=95)
        assert decode(file.getvalue()).shape == (64, 64, 3)
