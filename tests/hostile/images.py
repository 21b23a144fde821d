"""Images cut short, with bits flipped, or larger than their bytes: drawn and broken here, the same every time."""

import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from tests.hostile.case import AS_PILLOW, IMAGE_ERRORS, REFUSED, Case, http, refused
from tests.pictures import encoded as in_form

WIDTH, HEIGHT = 96, 72
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 92, "subsampling": 0}),
    "progressive jpeg": ("JPEG", {"quality": 92, "progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "ppm": ("PPM", {}),
    "jpeg2000": ("JPEG2000", {}),
    "avif": ("AVIF", {"quality": 90}),
}
FLIPS = 9
"""Flipped copies of each format."""
LARGE = "one bit a pixel, 8192 x 8192"

Pictures = Iterator[tuple[str, bytes]]
"""Names and files."""


def scene() -> Image.Image:
    """A rectangle each of pure red, green and blue over noise: something to detect, and bytes to break."""
    pixels = np.random.default_rng(0).integers(90, 160, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for channel, (x, y, w, h) in enumerate(((6, 8, 24, 18), (40, 10, 30, 30), (12, 40, 50, 24))):
        pixels[y : y + h, x : x + w] = 0
        pixels[y : y + h, x : x + w, channel] = 255
    return Image.fromarray(pixels)


@cache
def encoded(name: str) -> bytes:
    """The scene in one of FORMATS."""
    kind, options = FORMATS[name]
    return in_form(scene(), kind, **options)


def cases() -> Iterator[Case]:
    """All of this file."""
    for group, expect, pictures in (
        ("cut short", AS_PILLOW, truncated),
        ("bits flipped", AS_PILLOW, flipped),
        ("bomb", REFUSED, too_large),
        ("packed bomb", AS_PILLOW, packed_bombs),
        ("odd structure", AS_PILLOW, odd_structures),
        ("odd structure", REFUSED, many_scans),
        ("no image", REFUSED, no_images),
    ):
        for name, data in pictures():
            case = refused(group, name, http(data), {"data": data}, types=IMAGE_ERRORS)
            decoded = replace(case, expect=AS_PILLOW, image=data, large=name == LARGE)
            yield decoded if expect == AS_PILLOW else case


def truncated() -> Pictures:
    """Each format cut at every 5 % of its length."""
    for name in FORMATS:
        data = encoded(name)
        for percent in range(5, 100, 5):
            yield f"{name} at {percent} %", data[: len(data) * percent // 100]


def flipped() -> Pictures:
    """Bits of each format turned over: few, anywhere, or some of the first 64 bytes."""
    for name in FORMATS:
        for seed in range(FLIPS):
            draw = random.Random(f"{name} {seed}")
            data = bytearray(encoded(name))
            within = 64 if seed % 3 == 0 else len(data)
            for _ in range(1 + 3 * (seed % 4)):
                data[draw.randrange(min(within, len(data)))] ^= 1 << draw.randrange(8)
            yield f"{name}, seed {seed}", bytes(data)


def too_large() -> Pictures:
    """Headers that promise more pixels or longer sides than are allowed; hardly a byte stands behind them."""
    for width, height in (
        (20_000, 20_000), (65_535, 65_535), (2**31 - 1, 2**31 - 1), (1, 16_385), (16_385, 1), (8_193, 8_193),
    ):  # fmt: skip
        yield f"PNG of {width} x {height}", _png(width, height, zlib.compress(b"\0" * 100))
    for width, height in ((0, 0), (0, 5), (5, 0)):
        yield f"PNG of {width} x {height}", _png(width, height, zlib.compress(b"\0"))
    for width, height in ((20_000, 20_000), (65_535, 65_535)):
        header = struct.pack("<6sHHBBB", b"GIF89a", width, height, 0x80, 0, 0) + bytes(6)
        frame = struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"
        yield f"GIF of {width} x {height}", header + frame
        jpeg = bytearray(encoded("jpeg"))
        start = jpeg.index(b"\xff\xc0")
        jpeg[start + 5 : start + 9] = struct.pack(">HH", height, width)
        yield f"JPEG of {width} x {height}", bytes(jpeg)
        yield f"PPM of {width} x {height}", b"P6 %d %d 255\n" % (width, height) + bytes(30)
        for compression in (1, 5, 8):  # none, LZW, Deflate
            name = f"TIFF of {width} x {height}, compression {compression}"
            yield name, _tiff(width, height, compression)
    for width, height in ((20_000, 20_000), (20_000, -20_000), (2**31 - 1, 2**31 - 1)):
        info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        yield f"BMP of {width} x {height}", struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + info
    yield "PPM of 10^30 x 10^30", b"P6 1%s 1%s 255\n" % (b"0" * 30, b"0" * 30)
    vp8 = b"\x30\x01\x00\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383) + bytes(20)
    yield "WebP of 16383 x 16383", _riff(b"VP8 ", vp8)
    canvas = b"\x00\x00\x00\x00" + struct.pack("<I", 19_999)[:3] * 2
    yield "WebP with a canvas of 20000 x 20000", _riff(b"VP8X", canvas)
    lossless = b"\x2f" + struct.pack("<I", 16_383 | 16_383 << 14) + bytes(20)
    yield "lossless WebP of 16384 x 16384", _riff(b"VP8L", lossless)
    jp2 = encoded("jpeg2000").replace(struct.pack(">II", WIDTH, HEIGHT), struct.pack(">II", 20_000, 20_000))
    jp2 = jp2.replace(struct.pack(">II", HEIGHT, WIDTH), struct.pack(">II", 20_000, 20_000))
    yield "JPEG2000 of 20000 x 20000", jp2
    avif = encoded("avif").replace(struct.pack(">II", WIDTH, HEIGHT), struct.pack(">II", 20_000, 20_000))
    yield "AVIF of 20000 x 20000", avif


def packed_bombs() -> Pictures:
    """Little that unpacks to much, and much that is no pixel."""
    zeros = zlib.compress(bytes(50 * 2**20), 9)
    rows = zlib.compress(b"".join(b"\0" + bytes(3 * 32) for _ in range(32)))
    yield "PNG whose pixels unpack to 50 MiB", _png(32, 32, zeros)
    for kind, content in (
        (b"zTXt", b"key\0\0" + zeros),
        (b"iTXt", b"key\0\x01\0\0\0" + zeros),
        (b"iCCP", b"key\0\0" + zeros),
    ):
        picture = _png(32, 32, rows, (kind, content))
        yield f"PNG with a {kind.decode()} chunk that unpacks to 50 MiB", picture
    many = [(b"tEXt", b"key%d\0value" % i) for i in range(5_000)]
    yield "PNG with 5000 texts", _png(32, 32, rows, *many)
    for kind, start in ((b"tEXt", b"key\0"), (b"eXIf", b"MM\0*"), (b"iCCP", b"key\0\0"), (b"ruBb", b"")):
        picture = _png(32, 32, rows, (kind, start + b"A" * 3_000_000))
        yield f"PNG with a {kind.decode()} chunk of 3 MB", picture
    packed = [(b"zTXt", b"k%d\0\0" % i + zlib.compress(bytes(1_000_000))) for i in range(80)]
    yield "PNG with 80 texts of 1 MB each", _png(32, 32, rows, *packed)
    for name, marker, start in (
        ("EXIF", 0xE1, b"Exif\0\0"),
        ("ICC", 0xE2, b"ICC_PROFILE\0"),
        ("comment", 0xFE, b""),
        ("MPF", 0xE2, b"MPF\0"),
    ):
        parts = [start + bytes([i % 255 + 1, 255]) + b"A" * (65_531 - len(start)) for i in range(60)]
        yield f"JPEG with 4 MB of {name}", _jpeg_with(marker, *parts)
    yield LARGE, _one_bit(8_192, 8_192)
    yield "one bit a pixel, 16384 x 1", _one_bit(16_384, 1)
    yield "one bit a pixel, 1 x 16384", _one_bit(1, 16_384)


def odd_structures() -> Pictures:
    """Directories in circles, frames by the hundred, EXIF that lies."""
    tiff = bytearray(encoded("tiff"))
    (first,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, first)
    circle = bytes(tiff[: first + 2 + 12 * count]) + struct.pack("<I", first)
    circle += bytes(tiff[first + 6 + 12 * count :])
    yield "TIFF whose directory follows itself", circle
    crowded = bytearray(tiff)
    struct.pack_into("<H", crowded, first, 65_535)
    yield "TIFF with 65535 entries that are not there", bytes(crowded)
    away = bytearray(tiff)
    struct.pack_into("<I", away, 4, 2**32 - 2)
    yield "TIFF whose directory is past its end", bytes(away)
    for kind in ("GIF", "PNG", "WEBP"):
        first_frame, *frames = [scene().rotate(i).resize((32, 24)) for i in range(200)]
        yield f"{kind} of 200 frames", in_form(first_frame, kind, save_all=True, append_images=frames)
    for value in (0, 9, 65_535):
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01"
        exif += struct.pack(">HH", value, 0) + bytes(4)
        yield f"JPEG with EXIF orientation {value}", _jpeg_with(0xE1, exif)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("Autor\u00e9", "\U0001f600" * 1_000)
    yield "PNG with texts outside ASCII", in_form(scene(), "PNG", pnginfo=text)


def many_scans() -> Pictures:
    """JPEGs that want a pass over all pixels for 31 bytes, again and again."""
    for side, scans in ((WIDTH, 500), (4_000, 2_000)):
        data = in_form(Image.new("RGB", (side, side)), "JPEG", progressive=True)
        scan = data[data.rindex(b"\xff\xda") : -2]
        bomb = data[:-2] + scan * scans + data[-2:]
        yield f"JPEG of {scans} scans, {side} x {side}", bomb


def no_images() -> Pictures:
    """Other files, and none."""
    yield from (
        ("a PDF", b"%PDF-1.7\n" + bytes(100)),
        ("a ZIP", b"PK\x03\x04" + bytes(100)),
        ("HTML", b"<!doctype html><script>alert(1)</script>"),
        ("an SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
        ("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) run\n"),
        ("one byte", b"\xff"),
        ("an ICO", b"\0\0\1\0" + bytes(60)),
        ("zeros", bytes(5_000)),
        ("text outside ASCII", "\u56fe\u50cf \u00e9\u00df\U0001f4f7".encode() * 20),
        ("a pickle", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x04exit\x94\x93."),
    )


def _png(width: int, height: int, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 8-bit RGB with the compressed pixels given and chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return _png_of((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b""))


def _png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _jpeg_with(marker: int, *segments: bytes) -> bytes:
    """The scene with these segments before its own."""
    added = b"".join(struct.pack(">BBH", 0xFF, marker, len(one) + 2) + one for one in segments)
    return encoded("jpeg")[:2] + added + encoded("jpeg")[2:]


def _one_bit(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    row = b"\0" + bytes((width + 7) // 8)
    return _png_of((b"IHDR", header), (b"IDAT", zlib.compress(row * height, 9)), (b"IEND", b""))


def _tiff(width: int, height: int, compression: int) -> bytes:
    """A TIFF of one strip of 8-bit RGB that is hardly there."""
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 2),
        (273, 4, 1, 8), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, 100), (284, 3, 1, 1),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 108) + bytes(100) + directory


def _riff(kind: bytes, content: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
