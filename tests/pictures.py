"""Image files as tests need them."""

import io
from typing import Any

from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The image as a file, with the options of Pillow's writer."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> bytes:
    """An EXIF block that says it."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()
