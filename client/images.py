"""Images as they are sent, and as they are drawn on."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

ImageLike = bytes | str | os.PathLike[str] | Image.Image | np.ndarray
"""An encoded image, the path of a file, a Pillow image, or uint8 [height, width, 3] RGB (or [height, width] grey)."""

NO_LIMIT = 2**40
"""What is drawn on was read by the server, within its limits."""


def encoded(image: ImageLike) -> bytes:
    """The bytes to send: files and bytes as they are, pixels as a PNG, without loss.

    Raises:
        ValueError: an array of another shape or type.
        OSError: the file cannot be read.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise ValueError(
                f"an array of {image.dtype} {list(image.shape)} is not an image; expected uint8 [height, width, 3] or "
                "[height, width]"
            )
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def upright(data: bytes) -> Image.Image:
    """The image that an answer is about, decoded as the server does it: upright, 8 bits RGB, transparency over white.

    Raises ValueError: this machine cannot read it.
    """
    # only here, for it lifts Pillow's own limit on pixels for the whole process
    from maskx_image import ImageError, decode

    try:
        return Image.fromarray(decode(data, max_pixels=NO_LIMIT, max_side=NO_LIMIT))
    except ImageError as error:
        why = f"the image cannot be read here: {error}"
        raise ValueError(f"the overlay cannot be drawn, for {why}") from error
