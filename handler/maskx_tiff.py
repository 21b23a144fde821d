"""TIFFs that Pillow has no mode for: any number of bands, floating point, 9 to 64 bits, signed; names of other files.

Pillow's libtiff does the unpacking: it is shown the bytes of each row as a grey image of 8 bits, through a directory of
our own behind the file, and NumPy makes numbers of them. So every lossless compression of Pillow's build is read.

Of three bands and more the first three are red, green and blue, a band of transparency is laid over white, all others
are left out. White is the end of the bits' range, or MaxSampleValue (tag 281) where the file has it; for floating point
and for 32 bits see `as_bright_as_meant`.
"""

import io
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

MOST_BYTES = 2**28
"""Of the unpacked bands that are looked at, all together; some four times as much is in memory for a while."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_OFFSETS, _ORIENTATION, _BANDS, _ROWS, _COUNTS, _MAX_SAMPLE, _PLANAR = 273, 274, 277, 278, 279, 281, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_FILL_ORDER, _PREDICTOR, _EXTRA, _FORMAT = 266, 317, 338, 339
_KNOWN = {
    *range(256, 260),
    *range(322, 326),
    _PHOTOMETRIC,
    _FILL_ORDER,
    _OFFSETS,
    _ORIENTATION,
    _BANDS,
    _ROWS,
    _COUNTS,
}
_KNOWN |= {_MAX_SAMPLE, _PLANAR, _PREDICTOR, _EXTRA, _FORMAT}
_KINDS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 18: "Q"}
"""struct's letters of the types of TIFF that these tags may have."""
_MOST_VALUES = 1_000_000
"""Of all tags together; each part of the image takes two."""
_JPEG = (6, 7)
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_WHITE_IS_0, _BLACK_IS_0, _RGB = 0, 1, 2
_TRANSPARENT = (1, 2)
"""ExtraSamples of a band of transparency: multiplied into the colours already, or not."""


class TiffError(ValueError):
    """A TIFF that cannot be read, and why."""


class Tiff:
    """The directory of a TIFF's first image: what is needed to decide who reads it, and to read it.

    width, height: as stored. orientation: 1..8. mode: what comes nearest among Pillow's. `kind` is words for messages.

    Raises TiffError: it is none, or its directory is broken.
    """

    format = "TIFF"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
        if not self._order or len(data) < 8:
            raise TiffError("no TIFF")
        self.tags = self._directory()
        self.info: dict[str, Any] = {}
        self.width, self.height = self._one(_WIDTH, 0), self._one(_HEIGHT, 0)
        self.size = (self.width, self.height)
        self.bands = self._one(_BANDS, 1)
        self._bits = set(self.tags.get(_BITS, (1,)))
        self._formats = set(self.tags.get(_FORMAT, (_UNSIGNED,))) - {4} or {_UNSIGNED}
        self._photometric = self._one(_PHOTOMETRIC, _BLACK_IS_0)
        orientation = self._one(_ORIENTATION, 1)
        self.orientation = orientation if 1 <= orientation <= 8 else 1
        bits = "/".join(map(str, sorted(self._bits)))
        kinds = {_UNSIGNED: "", _SIGNED: " signed", _FLOAT: " floating point"}
        self.kind = (
            f"{self.bands} bands of {bits} bits{''.join(kinds.get(one, ' complex') for one in self._formats)}"
        )

    @property
    def mode(self) -> str:
        """Pillow's name of what the bands are."""
        if self.bands >= 3:
            return "RGB"
        return "F" if _FLOAT in self._formats else "I"

    def draft(self, mode: object, size: object) -> None:
        """Nothing: it is decoded in full."""

    def rgb(self) -> Image.Image:
        """The pixels as stored, uint8 [height, width, 3] as Pillow's RGB.

        Raises TiffError: a kind that is not read, or broken data.
        """
        if self._photometric not in (_WHITE_IS_0, _BLACK_IS_0, _RGB):
            raise TiffError(f"a TIFF of photometric interpretation {self._photometric} with {self.kind}")
        if self._one(_COMPRESSION, 1) in _JPEG:
            raise TiffError(f"a TIFF packed as JPEG with {self.kind}")
        dtype, bits = self._number()
        together = self._one(_PLANAR, 1) == 1 or self.bands == 1
        colours = 3 if self.bands >= 3 else 1
        alpha = self._alpha(colours)
        wanted = [*range(colours), *alpha]
        if together:
            values = self._plane(0, self.bands, dtype, bits)
            planes = [values[:, :, band] for band in wanted]
        else:
            planes = [self._plane(band, 1, dtype, bits)[:, :, 0] for band in wanted]
        white = self.tags.get(_MAX_SAMPLE)
        most = max(white) if white and self._formats == {_UNSIGNED} else None
        scaled = as_bright_as_meant(planes[:colours], bits=bits, most=most)
        if self._photometric == _WHITE_IS_0:
            scaled = [255 - one for one in scaled]
        if alpha:
            (opacity,) = as_bright_as_meant(planes[colours:], bits=bits, most=most)
            scaled = [_over_white(one, opacity, multiplied=self.tags[_EXTRA][0] == 1) for one in scaled]
        return Image.fromarray(np.dstack(scaled * (3 if colours == 1 else 1)))

    def _alpha(self, colours: int) -> list[int]:
        """The band of transparency, where there is one behind the colours."""
        extra = self.tags.get(_EXTRA, ())
        behind = self.bands == colours + len(extra) and extra[:1] and extra[0] in _TRANSPARENT
        return [colours] if behind else []

    def _number(self) -> tuple[np.dtype[Any], int]:
        if len(self._bits) > 1 or len(self._formats) > 1:
            raise TiffError(f"a TIFF of {self.kind}, which differ from each other")
        (bits,), (kind,) = self._bits, self._formats
        letter = {_UNSIGNED: "u", _SIGNED: "i", _FLOAT: "f"}.get(kind, "?")
        if letter == "u" and 1 <= bits < 16 and bits != 8:
            return np.dtype(np.uint16), bits
        if letter == "?" or bits not in (8, 16, 32, 64) or (letter, bits) == ("f", 8):
            raise TiffError(f"a TIFF of {self.kind}")
        return np.dtype(f"{self._order}{letter}{bits // 8}"), bits

    def _plane(self, plane: int, bands: int, dtype: np.dtype[Any], bits: int) -> np.ndarray:
        """[height, width, bands] of one plane of bands that are stored together."""
        tiled = _TILE_OFFSETS in self.tags
        offsets = self.tags.get(_TILE_OFFSETS if tiled else _OFFSETS, ())
        counts = self.tags.get(_TILE_COUNTS if tiled else _COUNTS, ())
        wide = self._one(_TILE_WIDTH, 0) if tiled else self.width
        high = self._one(_TILE_HEIGHT, 0) if tiled else min(self._one(_ROWS, self.height), self.height)
        if wide < 1 or high < 1:
            raise TiffError(f"a TIFF whose parts have {wide} x {high} pixels")
        across, down = -(-self.width // wide), -(-self.height // high)
        parts = slice(plane * across * down, (plane + 1) * across * down)
        if len(offsets[parts]) < across * down or len(counts[parts]) < across * down:
            raise TiffError(f"a TIFF with {len(offsets)} parts, {parts.stop} are needed")
        row = -(-wide * bands * bits // 8)
        if across * row * down * high > MOST_BYTES:
            size = f"{self.width} x {self.height} pixels with {self.kind}"
            raise TiffError(f"a TIFF of {size}, which unpacked has more than {MOST_BYTES} bytes")
        if tiled and row % 16:
            raise TiffError(f"a TIFF whose tiles have rows of {row} bytes, no multiple of 16")
        height = down * high if tiled else self.height
        shape = (across * row, height)
        grey = self._as_grey(shape, (row, high), offsets[parts], counts[parts], tiled=tiled)
        bytes_ = grey.reshape(height, across, row)
        if dtype == np.uint16 and bits < 16:
            numbers = _of_bits(bytes_, bits)[..., : wide * bands]
        elif self._one(_PREDICTOR, 1) == 3:
            return self._undone_float(bytes_, dtype, wide, bands, (height, across))
        else:
            numbers = bytes_.reshape(height, across, -1).view(dtype)
        values = numbers.reshape(height, across, wide, bands)
        if self._one(_PREDICTOR, 1) == 2:
            values = np.cumsum(values, axis=2, dtype=values.dtype)
        return values.reshape(height, across * wide, bands)[: self.height, : self.width]

    def _undone_float(
        self, bytes_: np.ndarray, dtype: np.dtype[Any], wide: int, bands: int, parts: tuple[int, int]
    ) -> np.ndarray:
        """Predictor 3: differences of bytes, those of the highest place of all numbers first."""
        height, across = parts
        differences = bytes_.reshape(height, across, -1, bands)
        summed = np.cumsum(differences, axis=2, dtype=np.uint8).reshape(
            height, across, dtype.itemsize, wide * bands
        )
        numbers = np.ascontiguousarray(summed.transpose(0, 1, 3, 2)).view(dtype.newbyteorder(">"))
        values = numbers.reshape(height, across * wide, bands)
        return values[: self.height, : self.width]

    def _as_grey(
        self,
        shape: tuple[int, int],
        part: tuple[int, int],
        offsets: tuple[int, ...],
        counts: tuple[int, ...],
        *,
        tiled: bool,
    ) -> np.ndarray:
        """Bytes of all rows, uint8 [height, width], unpacked by Pillow as a grey image of that shape."""
        tags: dict[int, tuple[int, ...]] = {
            _WIDTH: (shape[0],),
            _HEIGHT: (shape[1],),
            _BITS: (8,),
            _PHOTOMETRIC: (_BLACK_IS_0,),
            _BANDS: (1,),
        }
        tags |= {_COMPRESSION: (self._one(_COMPRESSION, 1),), _PLANAR: (1,)}
        if tiled:
            tags |= {
                _TILE_WIDTH: (part[0],),
                _TILE_HEIGHT: (part[1],),
                _TILE_OFFSETS: offsets,
                _TILE_COUNTS: counts,
            }
        else:
            tags |= {_ROWS: (part[1],), _OFFSETS: offsets, _COUNTS: counts}
        if _FILL_ORDER in self.tags:
            tags[_FILL_ORDER] = self.tags[_FILL_ORDER]
        file = io.BytesIO(_with_directory(self._data, tags))
        with Image.open(file, formats=["TIFF"]) as image:
            return np.array(image, dtype=np.uint8)

    def _one(self, tag: int, default: int) -> int:
        values = self.tags.get(tag)
        return int(values[0]) if values else default

    def _directory(self) -> dict[int, tuple[int, ...]]:
        """Tags of whole numbers of the first directory, of TIFF or BigTIFF."""
        order, data = self._order, self._data
        try:
            (version,) = struct.unpack_from(order + "H", data, 2)
            big = version == 43
            word, entry, count_of = ("Q", 20, "Q") if big else ("I", 12, "H")
            (start,) = struct.unpack_from(order + word, data, 8 if big else 4)
            (entries,) = struct.unpack_from(order + count_of, data, start)
            tags: dict[int, tuple[int, ...]] = {}
            values = 0
            first = start + struct.calcsize(count_of)
            for at in range(first, first + min(entries, 4096) * entry, entry):
                tag, kind, count = struct.unpack_from(f"{order}HH{word}", data, at)
                letter = _KINDS.get(kind)
                if letter is None or tag not in _KNOWN or tag in tags or count < 1:
                    continue
                values += count
                if values > _MOST_VALUES:
                    raise TiffError(f"a TIFF whose directory has more than {_MOST_VALUES} numbers")
                place, room = at + (12 if big else 8), 8 if big else 4
                if struct.calcsize(letter) * count > room:
                    (place,) = struct.unpack_from(order + word, data, place)
                tags[tag] = struct.unpack_from(f"{order}{count}{letter}", data, place)
            return tags
        except struct.error as error:
            raise TiffError("a TIFF whose directory is broken or cut short") from error


def is_plain(tags: Mapping[int, Any]) -> bool:
    """Whether Pillow, where it has a mode for a TIFF of these tags, reads it, and as bright as it was meant."""
    bits, kinds = tags.get(_BITS, (1,)), set(tags.get(_FORMAT, (_UNSIGNED,))) - {4} or {_UNSIGNED}
    if tags.get(_PHOTOMETRIC, _BLACK_IS_0) not in (_WHITE_IS_0, _BLACK_IS_0, _RGB):
        return True
    apart = tags.get(_PLANAR, 1) == 2
    plain = max(bits) <= 8 or (set(bits) == {16} and len(bits) != 2 and _MAX_SAMPLE not in tags)
    return kinds == {_UNSIGNED} and plain and not apart


def as_bright_as_meant(planes: list[np.ndarray], *, bits: int, most: int | None = None) -> list[np.ndarray]:
    """Bands of one image -> uint8 of the same shapes, all on one scale.

    White is `most`, else the largest number of `bits` bits, with a sign half of it; what is below 0 is black. Of
    floating point and of more than 16 bits nobody knows what was meant but from the values: white is 1 (floating point
    alone), 255 or 65535, the first of which none is above the double, for resampling overshoots; else the largest there
    is. Values that are not finite become 0.
    """
    kind = planes[0].dtype.kind
    if kind == "f":
        planes = [np.nan_to_num(one.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0) for one in planes]
    largest = max(float(one.max(initial=0)) for one in planes)
    if kind == "f" or (bits > 16 and most is None):
        likely = (1.0, 255.0, 65_535.0) if kind == "f" else (255.0, 65_535.0)
        white = next((one for one in likely if largest <= 2 * one), largest)
    else:
        white = float(most or 2 ** (bits - (kind == "i")) - 1)
    return [
        np.clip(np.rint(one.astype(np.float32) * (255.0 / white)), 0, 255).astype(np.uint8) for one in planes
    ]


def _over_white(colour: np.ndarray, opacity: np.ndarray, *, multiplied: bool) -> np.ndarray:
    wide, share = colour.astype(np.float32), opacity.astype(np.float32) / 255.0
    return np.clip(np.rint((wide if multiplied else wide * share) + 255.0 * (1.0 - share)), 0, 255).astype(
        np.uint8
    )


def _of_bits(rows: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of `bits` bits that are packed into the bytes of each row, the highest bit first; uint16."""
    flat = np.unpackbits(rows, axis=-1)
    count = flat.shape[-1] // bits
    grouped = flat[..., : count * bits].reshape(*flat.shape[:-1], count, bits)
    return (grouped.astype(np.uint16) << np.arange(bits - 1, -1, -1, dtype=np.uint16)).sum(
        -1, dtype=np.uint16
    )


def _with_directory(data: bytes, tags: dict[int, tuple[int, ...]]) -> bytes:
    """The file between the header and the directory of a BigTIFF, whose offsets have room for every size."""
    before = 16
    end = before + len(data) + len(data) % 2
    room = end + 8 + 20 * len(tags) + 8
    entries, values = b"", b""
    for tag, numbers in sorted(tags.items()):
        if tag in (_OFFSETS, _TILE_OFFSETS):
            numbers = tuple(min(one + before, end) for one in numbers)
        packed = struct.pack(f"<{len(numbers)}Q", *numbers)
        place = packed if len(numbers) == 1 else struct.pack("<Q", room + len(values))
        values += b"" if len(numbers) == 1 else packed
        entries += struct.pack("<HHQ", tag, 16, len(numbers)) + place
    header = b"II" + struct.pack("<HHHQ", 43, 8, 0, end)
    directory = struct.pack("<Q", len(tags)) + entries + struct.pack("<Q", 0) + values
    return b"".join([header, data, bytes(len(data) % 2), directory])


_BRANDS = {
    "HEIC": (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"),
    "HEIF": (b"mif1", b"msf1", b"mif2"),
    "AVIF": (b"avif", b"avis"),
    "a raw file of a camera (CR3)": (b"crx ",),
    "a video": (b"isom", b"mp41", b"mp42", b"qt  ", b"M4V ", b"avc1", b"3gp4", b"3gp5"),
}
_STARTS = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n", "PNG"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"%PDF-", "PDF"),
    (
        rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?(?:<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]",
        "SVG, a drawing",
    ),
    (
        rb"(?i)(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)?<(?:!doctype html|html|head|body)\b",
        "an HTML page, perhaps an error of who sent it",
    ),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull"),
    (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (rb"8BP[SB]", "a file of Photoshop"),
    (rb"(?s).{128}DICM", "DICOM"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "packed with gzip"),
    (rb"\x93NUMPY", "an array of NumPy"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"\0\0[\x01\x02]\0", "an icon (ICO)"),
    (rb"#\?RADIANCE", "Radiance HDR"),
    (rb"qoif", "QOI"),
    (rb"\x89HDF", "HDF5"),
    (rb"SIMPLE  =", "FITS"),
    (rb"DDS ", "DDS"),
    (rb"\x1aE\xdf\xa3|RIFF....AVI ", "a video"),
    (rb"FUJIFILMCCD-RAW|II(?:U\0|RO|RS)", "a raw file of a camera"),
    (rb"\s*(?:<\?xml|<[A-Za-z!])", "XML"),
    (rb"\s*[\[{]", "JSON"),
)


def kind_of(data: bytes) -> str:
    """What a file is that is no image which is read, in words; "" where nobody knows."""
    if data[4:8] == b"ftyp":
        brands = [
            data[8:12],
            *(data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4], "big"), 64), 4)),
        ]
        return next((name for brand in brands for name, known in _BRANDS.items() if brand in known), "")
    start = data[:1024]
    for pattern, name in _STARTS:
        if re.match(pattern, start, re.DOTALL):
            return name
    if not start.strip(b"\0"):
        return "nothing but zeros"
    if start.isascii() and not re.search(rb"[\0-\x08\x0e-\x1f]", start):
        return "text"
    return ""
