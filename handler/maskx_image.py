"""Image bytes -> the upright RGB pixels that the network sees, by the same rules in training and in serving.

Imports only Pillow, its plug-in where there is one, NumPy, `maskx_tiff` and the standard library; opens no file, writes
nothing to standard output.

What becomes of each kind of image:

* EXIF orientation is applied (JPEG, PNG, WebP, AVIF; Pillow itself turns TIFF). A broken EXIF block counts
  as upright.
* Transparency (alpha channel, transparent palette entry or colour) is laid over white, as most viewers show
  it.
* 16 bits per channel (`I;16`, `I`) are scaled from 0..65535 to 0..255; values outside are clipped.
* Floating point, 32 bits, and TIFFs of other depths, signs and numbers of bands are as bright as `maskx_tiff` says.
* HEIC and HEIF are read where Pillow's plug-in is installed (pillow-heif).
* Greyscale, palette, bilevel, CMYK, YCCK, YCbCr, HSV go through Pillow's own conversion; colour profiles
  are ignored.
* Of an animation the first frame is taken.

Memory: 4 bytes per pixel inside Pillow while an image is decoded and 3 in the array that is returned;
conversion and turning go strip by strip and add nothing of the image's size. Measured peaks per pixel: 7 bytes for
JPEG, PNG, TIFF, BMP; 10 for a progressive JPEG without chroma subsampling and AVIF; 16 for WebP; 20 for
JPEG2000 and floating point. A JPEG for serving (`decode_to_fit`) is decoded at 1/2, 1/4 or 1/8 of its sides
where the network would shrink it at least that much: 2 bytes per pixel of the original, or fewer (a progressive one
4 to 7, for its coefficients are needed whole).
"""

import contextlib
import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from maskx_tiff import Tiff, TiffError, as_bright_as_meant, is_plain, kind_of

try:
    from pillow_heif import register_heif_opener  # type: ignore[import-not-found]
except ImportError:
    HEIF = False
else:
    register_heif_opener(thumbnails=False)
    HEIF = True

MAX_PIXELS = 64 * 1024 * 1024
"""Default limit on width x height: 64 Mi pixels are 192 MiB of RGB."""

MAX_SIDE = 16_384
"""Default limit on either side, in pixels."""

MOST_SCANS = 64
"""Scans of a JPEG: encoders write 1 to 20, and each costs a pass over all pixels but only some 30 bytes."""

_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif", ".heics", ".heifs"),
}
FORMATS = tuple(name for name in _SUFFIXES if name != "HEIF" or HEIF)
SUFFIXES = tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
"""Ends of the names, in lower case, by which the images of a folder are told from other files; those of HEIF also
where it cannot be read, so that whoever has such files is told."""

# The limits above are checked from the header before anything is decoded. Pillow's own limit would refuse
# less (it warns first) and would stand in the way of whoever allows more.
Image.MAX_IMAGE_PIXELS = None

STRIP_PIXELS = 2**18
"""Pixels that are converted, turned and copied at a time: 1 MiB in Pillow, which stays in a core's cache."""

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Orientations whose first stored row becomes the last row or column of the upright image.
_FROM_THE_END = (3, 4, 6, 7)
# What Pillow's decoders are known to raise on bytes that are broken, cut short or meant to do harm.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    struct.error,
)


class ImageError(ValueError):
    """Bytes that are no image, no whole one or too large a one; the message is fit for the caller."""


class ImageTooLarge(ImageError):
    """More pixels or a longer side than allowed."""


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """The header: stored size in pixels, EXIF orientation 1..8 (1 is upright), Pillow's format and mode."""

    width: int
    height: int
    orientation: int
    format: str
    mode: str

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) after the EXIF orientation is applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(file: BinaryIO) -> ImageHeader:
    """Size and orientation of the image in a seekable binary file, without decoding its pixels.

    Raises ImageError where Pillow knows no such image; pixels may still turn out to be broken later.
    """
    image = _identify(file)
    return _header(image, file)


def checked_header(data: bytes, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> ImageHeader:
    """The header of `data`, within the limits; nothing is decoded. Raises ImageError as `decode` does before that."""
    return _open(data, max_pixels, max_side)[1]


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """An image for the network, and the size that answers refer to.

    pixels: uint8 [h, w, 3], RGB, upright, contiguous and writable; perhaps scaled down.
    height, width: of the upright original, in pixels.
    """

    pixels: np.ndarray
    height: int
    width: int


def decode(
    data: bytes, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE, upright: bool = True
) -> np.ndarray:
    """`data` in its own size as a contiguous, writable uint8 array [height, width, 3] in RGB order.

    Upright unless `upright=False` asks for the pixels as stored.

    Raises ImageError: empty, unknown, cut short or broken data; ImageTooLarge: more than `max_pixels` pixels or a side
    longer than `max_side` (both checked from the header, before pixels are decoded).
    """
    image, header = _open(data, max_pixels, max_side)
    return _pixels(image, header, header.orientation if upright else 1)


def decode_to_fit(
    data: bytes, *, min_size: int, max_size: int, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> DecodedImage:
    """As `decode`, upright; a JPEG that the network would halve at least is scaled down while it is decoded.

    The network brings the shorter side to `min_size` pixels and keeps the longer within `max_size`. A JPEG is
    decoded at 1/2, 1/4 or 1/8 (the DCT of its 8 x 8 blocks evaluated at fewer points), whichever is the
    smallest that is on neither side below that target, so that the network still only shrinks. Sides are
    rounded up; what that stretches an image by is less than one pixel of what the network sees. All other
    formats are decoded in full. The limits are those of the original's size; errors as of `decode`.
    """
    image, header = _open(data, max_pixels, max_side)
    height, width = fitted_size(header.height, header.width, min_size=min_size, max_size=max_size)
    image.draft(None, (width, height))  # does nothing where the format is not JPEG or the image is too small
    upright_width, upright_height = header.upright_size
    pixels = _pixels(image, header, header.orientation)
    return DecodedImage(pixels=pixels, height=upright_height, width=upright_width)


def fitted_size(height: int, width: int, *, min_size: int, max_size: int) -> tuple[int, int]:
    """Height and width of the network's input: the shorter side `min_size`, the longer at most `max_size`."""
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def _open(data: bytes, max_pixels: int, max_side: int) -> tuple[Image.Image | Tiff, ImageHeader]:
    """Pillow's lazy image, within the limits, and its header. Raises ImageError as `decode` says."""
    if not data:
        raise ImageError("the image is empty (0 bytes)")
    file = io.BytesIO(data)
    image = _identify(file)
    header = _header(image, file)
    if header.width * header.height > max_pixels or max(header.width, header.height) > max_side:
        raise ImageTooLarge(
            f"the image is too large: {header.width} x {header.height} pixels, at most {max_pixels} pixels "
            f"and {max_side} to a side are allowed"
        )
    # The marker of a scan, which compressed pixels cannot hold; other segments may, as a thumbnail's.
    scans = data.count(b"\xff\xda") if data[:2] == b"\xff\xd8" else 0
    if scans > MOST_SCANS:
        raise ImageError(f"the JPEG has {scans} scans, at most {MOST_SCANS} are read")
    return image, header


def _pixels(image: Image.Image | Tiff, header: ImageHeader, orientation: int) -> np.ndarray:
    """Decodes; uint8 [h, w, 3], turned upright from `orientation`. Raises ImageError on broken data.

    A strip of stored rows becomes rows of the upright image or columns, counted from one end or the other.
    """
    try:
        if isinstance(image, Tiff):
            image = image.rgb()
        image.load()
        if image.mode == "F":  # its scale is the whole image's
            image = Image.fromarray(as_bright_as_meant([np.asarray(image)], bits=32)[0])
        width, height = image.size
        sideways = orientation >= 5
        pixels = np.empty((width, height, 3) if sideways else (height, width, 3), dtype=np.uint8)
        step = max(1, STRIP_PIXELS // width)
        for top in range(0, height, step):
            bottom = min(top + step, height)
            strip = _to_rgb(image.crop((0, top, width, bottom)))
            if orientation in _TURNS:
                strip = strip.transpose(_TURNS[orientation])
            first, last = (height - bottom, height - top) if orientation in _FROM_THE_END else (top, bottom)
            part = pixels[:, first:last] if sideways else pixels[first:last]
            part[...] = np.asarray(strip)
    except TiffError as error:
        raise ImageError(f"{error}, which is not read; {_SEND}") from error
    except _DECODER_ERRORS as error:
        raise ImageError(f"the {header.format} image is broken or cut short: {error}") from error
    return pixels


def _identify(file: BinaryIO) -> Image.Image | Tiff:
    """Pillow's lazy image, or a TIFF that it would not read, or not as bright: header read, pixels not yet."""
    Image.init()
    try:
        file.seek(0)
        if file.read(2) in (b"II", b"MM"):
            tiff = _tiff(file)
            if tiff is not None:
                return tiff
        file.seek(0)
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        raise ImageError(_no_image(file)) from error
    except _DECODER_ERRORS as error:
        raise ImageError(f"the image's header is broken: {error}") from error


def _tiff(file: BinaryIO) -> Image.Image | Tiff | None:
    """The TIFF in the file: our own where Pillow has no mode for it or would make it darker or brighter than meant."""
    file.seek(0)
    with contextlib.suppress(UnidentifiedImageError):
        image = Image.open(file, formats=["TIFF"])
        if is_plain(getattr(image, "tag_v2", {})):
            return image
    file.seek(0)
    try:
        return Tiff(file.read())
    except TiffError:
        return None


_SEND = "send it as JPEG or PNG"


def _no_image(file: BinaryIO) -> str:
    """What bytes that no reader knows are, for the message."""
    file.seek(0)
    kind = kind_of(file.read(4096))
    if not kind:
        return f"not an image that can be read; known are {', '.join(FORMATS)}"
    if kind in ("HEIC", "HEIF") and not HEIF:
        cure = f"{_SEND}, or install pillow-heif where this is read"
        return f"the image is {kind}, as phones write it, which is not read here; {cure}"
    known = f"known are {', '.join(FORMATS)}"
    if kind in (*FORMATS, "HEIC"):
        return f"the {kind} image is broken or of a kind that cannot be read; {known}"
    return f"not an image that can be read, but {kind}; {known}"


def _header(image: Image.Image | Tiff, file: BinaryIO) -> ImageHeader:
    kind = image.format or "unknown"
    orientation = 1
    if isinstance(image, Tiff):
        orientation = image.orientation
    elif kind != "TIFF":  # Pillow gives TIFF's size and pixels upright
        exif = image.info.get("exif")
        if kind == "PNG" and exif is None:
            exif = _late_png_exif(file)
        if isinstance(exif, bytes):
            orientation = exif_orientation(exif)
    if min(image.size) < 1:
        raise ImageError(f"the image has no pixels: {image.width} x {image.height}")
    return ImageHeader(
        width=image.width, height=image.height, orientation=orientation, format=kind, mode=image.mode
    )


def exif_orientation(exif: bytes) -> int:
    """Orientation 1..8 from an EXIF block (a TIFF header and its first directory); 1 where there is none.

    Read here rather than by Pillow, which would print a warning about a broken block and, for PNG, decode
    all pixels to look for it.
    """
    block = exif.removeprefix(b"Exif\x00\x00")
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", block, 4)
    if start + 2 > len(block):
        return 1
    (entries,) = struct.unpack_from(order + "H", block, start)
    for entry in range(start + 2, min(start + 2 + 12 * entries, len(block) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", block, entry)
        if tag == _ORIENTATION_TAG and kind in (3, 4):  # SHORT; some writers use LONG
            (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), block, entry + 8)
            return int(value) if 1 <= value <= 8 else 1
    return 1


def _late_png_exif(file: BinaryIO) -> bytes | None:
    """The eXIf chunk of a PNG, which may stand behind the pixels, where Pillow has not looked yet."""
    position = file.tell()
    try:
        offset = 8
        while True:
            file.seek(offset)
            head = file.read(8)
            if len(head) < 8 or head[4:] == b"IEND":
                return None
            (length,) = struct.unpack(">I", head[:4])
            if head[4:] == b"eXIf":
                return file.read(length)
            offset += 12 + length
    finally:
        file.seek(position)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode but `F` -> RGB, pixel by pixel, by the rules at the top; the image itself where it is RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        pixels = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", pixels.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, pixels).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey of 16 or 32 bits, any shape -> uint8 of that shape, by the rules at the top."""
    # 65535 = 255 * 257, so 257 takes white to white; + 128 rounds to nearest
    return ((np.clip(values.astype(np.int64), 0, 65_535) + 128) // 257).astype(np.uint8)
