"""Requests that the handler answers before TorchServe sends any, so that the first is as fast as the tenth.

Each goes the whole way of a real one: threads that decode, both canvases that photographs come in, the forms of masks,
the overlay's font, compression.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from maskx_headers import compressed
from maskx_service import Service

PHOTOGRAPH = (640, 480)


def warm_up(service: Service) -> None:
    """Answers a batch of a landscape and a portrait, and an overlay, which has run lengths drawn.

    Raises:
        ValueError: one failed; the message says with what. One that the settings' limits refuse is no failure.
    """
    noise = np.random.default_rng(0).integers(0, 256, (PHOTOGRAPH[1], PHOTOGRAPH[0], 3), dtype=np.uint8)
    landscape, portrait = _encoded(noise, "JPEG"), _encoded(np.rot90(noise), "PNG")
    first, second = (
        {"body": landscape, "score_threshold": "0", "mask_format": "polygon"},
        {"body": portrait, "score_threshold": "0", "mask_format": "png"},
    )
    batches = [[first, second], [{"body": landscape, "score_threshold": "0", "output": "overlay"}]]
    for batch in batches:
        for answer in service.answer(batch):
            if answer.status >= 500:
                raise ValueError(f"the model cannot be warmed up: {answer.body.decode()}")
            compressed(answer.body)


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()
