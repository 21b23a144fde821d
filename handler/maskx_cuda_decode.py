"""JPEGs decoded on the GPU, in one call a batch (torchvision's nvJPEG), where that is faster than Pillow's threads.

Images stay on the device in their own size: what the network needs of them is scaled there. Pillow reads the header,
checks the limits and keeps the last word: whatever is no plain baseline JPEG, and whatever the GPU cannot decode, goes
its way, so that errors and their messages are its own. Knows nothing of the server.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from maskx_image import ImageError, ImageHeader, open_image

logger = logging.getLogger(__name__)

DECODE = ("auto", "cpu", "gpu")
"""Where JPEGs are decoded: `auto` measures both on a GPU when the model is loaded."""

ROUNDS = 3
"""Of the measurement; the fastest of each way counts."""

Decode = Callable[[list[Tensor]], list[Tensor]]
"""Bytes of JPEGs, uint8 [B] each on the host -> uint8 [3, h, w] RGB each, on the device, as stored."""


@dataclass(frozen=True, kw_only=True)
class DeviceImage:
    """As `maskx_image.DecodedImage`, its pixels uint8 [h, w, 3] on the device."""

    pixels: Tensor
    height: int
    width: int


class CudaDecoder:
    """Decodes what the GPU can.

    Args:
        device: the GPU.
        max_pixels, max_side: limits of an image, as `maskx_image.decode` has them.
        decode: what does it; None: torchvision's decoder on the device.
    """

    def __init__(
        self, device: torch.device, *, max_pixels: int, max_side: int, decode: Decode | None = None
    ) -> None:
        self._max_pixels = max_pixels
        self._max_side = max_side
        self._decode = decode or partial(decoded_by_torchvision, device=device)

    def decoded(self, data: Sequence[bytes]) -> list[DeviceImage | None]:
        """The image of each, upright; None of those that are Pillow's."""
        headers = [self._header(one) for one in data]
        mine = [place for place, header in enumerate(headers) if header is not None]
        found: list[DeviceImage | None] = [None] * len(data)
        if not mine:
            return found
        try:
            stored = self._decode([_as_bytes(data[place]) for place in mine])
        except RuntimeError as error:  # of one of them, or of the device; Pillow tells which
            logger.warning("the GPU decodes no batch of %d JPEGs (%s); Pillow does", len(mine), error)
            return found
        for place, pixels in zip(mine, stored, strict=True):
            header = headers[place]
            assert header is not None
            if tuple(pixels.shape) == (3, header.height, header.width):
                width, height = header.upright_size
                found[place] = DeviceImage(
                    pixels=upright(pixels, header.orientation).permute(1, 2, 0), height=height, width=width
                )
        return found

    def _header(self, data: bytes) -> ImageHeader | None:
        """Of a baseline JPEG in grey or YCbCr within the limits; None of all else."""
        try:
            image, header = open_image(data, self._max_pixels, self._max_side)
        except ImageError:
            return None
        plain = header.format == "JPEG" and header.mode in ("L", "RGB")
        odd = image.info.get("progressive") or image.info.get("adobe_transform", 1) == 0
        return header if plain and not odd else None


def decoded_by_torchvision(data: list[Tensor], device: torch.device) -> list[Tensor]:
    """`Decode` by torchvision's own decoder on the device.

    Raises:
        RuntimeError: one of them is broken, or the device has no decoder.
    """
    with warnings.catch_warnings():
        # torchvision 0.29 sends its users to torchcodec, of which those who serve have none.
        warnings.simplefilter("ignore", DeprecationWarning)
        found: list[Tensor] = decode_jpeg(data, mode=ImageReadMode.RGB, device=device)
    return found


def _as_bytes(data: bytes) -> Tensor:
    """uint8 [B], of its own memory: torch wants to be able to write."""
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


def upright(pixels: Tensor, orientation: int) -> Tensor:
    """[3, h, w] as stored -> upright, by the EXIF orientation 1..8; a view where it can be."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    turned = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation)
    return pixels.flip(turned) if turned else pixels


def on_host(pixels: np.ndarray | Tensor) -> np.ndarray:
    """Pixels uint8 [h, w, 3] of a decoded image, wherever they are."""
    return pixels if isinstance(pixels, np.ndarray) else pixels.contiguous().cpu().numpy()


def seconds_of(decode: Callable[[list[bytes]], object], data: list[bytes], wait: Callable[[], None]) -> float:
    """Of the fastest of `ROUNDS` runs over a batch, after one that does not count."""
    found = []
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        decode(data)
        wait()
        found.append(time.perf_counter() - begin)
    return min(found[1:])
