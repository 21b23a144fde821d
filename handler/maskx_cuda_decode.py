"""JPEGs decoded by the GPU, so that their pixels need not be brought to it; what is out of the ordinary is Pillow's.

The GPU gets JPEGs as most are: baseline, 8 bits, grey or YCbCr, one scan, nothing behind their end. All others, and all
of a batch of which the GPU's decoder says that it failed, are decoded by `maskx_image`; so limits, errors and their
messages are those of `maskx_image` always. Pixels may differ by rounding and by how colours are enlarged. Images are
decoded in full, not scaled down as on a CPU.

Knows nothing of the server.
"""

import logging
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskx_image import ImageError, ImageHeader, checked_header

logger = logging.getLogger(__name__)

Decode = Callable[[list[Tensor]], list[Tensor]]
"""JPEG files, uint8 [n] on the host each -> their pixels as stored, uint8 [3, h, w], RGB, on the device."""

_SAMPLINGS = {0x11, 0x21, 0x22, 0x12, 0x41}
"""Of the first component, horizontally and vertically, where the others have 1 and 1."""


@dataclass(frozen=True, kw_only=True)
class DeviceImage:
    """An image for the network that lies on its device, in its own size.

    pixels: uint8 [h, w, 3], RGB, upright, perhaps not contiguous. height, width: in pixels.
    """

    pixels: Tensor
    height: int
    width: int

    def on_host(self) -> np.ndarray:
        """The pixels as a contiguous array; waits for the device."""
        return np.ascontiguousarray(self.pixels.cpu().numpy())


class CudaDecoder:
    """Decodes on the device what is an ordinary JPEG."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    def images(self, data: Sequence[bytes], *, max_pixels: int, max_side: int) -> list[DeviceImage | None]:
        """The images of files, in order; None for each that is to be decoded by `maskx_image`.

        Args:
            data: image files of any kind.
            max_pixels, max_side: limits as of `maskx_image.decode`; what is above them is left to it, to be refused.
        """
        images: list[DeviceImage | None] = [None] * len(data)
        headers = {
            number: header
            for number, one in enumerate(data)
            if (header := _ordinary(one, max_pixels, max_side)) is not None
        }
        if not headers:
            return images
        try:
            files = [torch.from_numpy(np.array(np.frombuffer(data[number], np.uint8))) for number in headers]
            stored = self._decode(files)
            for (number, header), pixels in zip(headers.items(), stored, strict=True):
                images[number] = _image(pixels, header)
        except Exception as error:  # whatever a library for GPUs raises, Pillow can still decode
            logger.warning("the GPU could not decode %d JPEGs, Pillow does: %s", len(headers), error)
            return [None] * len(data)
        return images


def cuda_decoder(device: torch.device) -> CudaDecoder:
    """torchvision's, by nvJPEG.

    Raises ValueError: this torchvision has no decoder for GPUs, or the device is not a CUDA device.
    """
    if device.type != "cuda":
        raise ValueError(f"images can be decoded on a CUDA device, and this one is {device}")
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError as error:
        raise ValueError(f"this torchvision has no decoder for GPUs: {error}") from error

    def decode(files: list[Tensor]) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision 0.29 says that TorchCodec will take its place
            decoded: list[Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
        return decoded

    return CudaDecoder(decode)


def upright(pixels: Tensor, orientation: int) -> Tensor:
    """[3, h, w] as stored -> upright, by the EXIF orientation 1..8; a view or a copy on the same device."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    # Which sides are then the wrong way round: rows, columns.
    flipped = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels if flipped is None else pixels.flip(flipped)


def is_ordinary(data: bytes) -> bool:
    """Whether these bytes are a baseline JPEG of 8 bits, grey or YCbCr, with one scan and nothing behind its end."""
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return False
    at, frame, adobe = 2, b"", 1
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = struct.unpack_from(">xBH", data, at)
        segment = data[at + 4 : at + 2 + length]
        if marker == 0xC0:
            frame = segment
        elif marker == 0xEE and segment[:5] == b"Adobe" and len(segment) >= 12:
            adobe = segment[11]
        elif marker == 0xDA:  # pixels follow; a scan's marker cannot stand in them
            return adobe == 1 and _is_plain_frame(frame) and data.count(b"\xff\xda", at) == 1
        elif not (0xDB <= marker <= 0xFE or marker == 0xC4):  # another kind of frame, or no segment at all
            return False
        at += 2 + length
    return False


def _is_plain_frame(frame: bytes) -> bool:
    """Whether a frame's header says 8 bits, and grey or YCbCr with colours not sampled finer than brightness."""
    if len(frame) < 6 or frame[0] != 8 or len(frame) != 6 + 3 * frame[5]:
        return False
    ids, samplings = frame[6::3], frame[7::3]
    if frame[5] == 1:
        return True
    return frame[5] == 3 and ids != b"RGB" and samplings[0] in _SAMPLINGS and samplings[1:] == b"\x11\x11"


def _ordinary(data: bytes, max_pixels: int, max_side: int) -> ImageHeader | None:
    """The header of an ordinary JPEG within the limits; None for all others."""
    if not is_ordinary(data):
        return None
    try:
        return checked_header(data, max_pixels=max_pixels, max_side=max_side)
    except ImageError:
        return None


def _image(stored: Tensor, header: ImageHeader) -> DeviceImage:
    """Raises ValueError where the decoder gave anything but the header's size."""
    if stored.dtype != torch.uint8 or tuple(stored.shape) != (3, header.height, header.width):
        raise ValueError(
            f"decoded to {stored.dtype} {list(stored.shape)}, the header says {header.height} x {header.width}"
        )
    width, height = header.upright_size
    return DeviceImage(
        pixels=upright(stored, header.orientation).permute(1, 2, 0), height=height, width=width
    )
