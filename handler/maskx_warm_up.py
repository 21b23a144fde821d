"""Requests that the handler answers before TorchServe sends any, so that the first is as fast as the tenth.

Each goes the whole way of a real one: threads that decode, both canvases that photographs come in, the forms of masks,
the overlay's font, compression.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import numpy as np
from PIL import Image

from maskx_cuda_decode import CudaDecoder, seconds_of
from maskx_headers import compressed
from maskx_image import decode_to_fit
from maskx_service import Service

logger = logging.getLogger(__name__)

PHOTOGRAPH = (640, 480)

MEASURED, MEASURED_TOGETHER = (1920, 1080), 8
"""The photographs that decoders are measured with, and how many at a time."""


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


def faster_decoder(
    service: Service, decoder: CudaDecoder, *, min_size: int, max_size: int, wait: Callable[[], None]
) -> tuple[bool, dict[str, float]]:
    """Whether `decoder` is faster than the service's threads with Pillow, and the seconds of a photograph of each way.

    Args:
        service: whose threads decode.
        decoder: on the GPU.
        min_size, max_size: that the network brings images to, see `maskx_image.decode_to_fit`.
        wait: returns once the device has done all that it was given.

    Whatever the decoder raises means that it cannot be used here, which goes to the log.
    """
    grid = np.add.outer(np.arange(MEASURED[1]), np.arange(MEASURED[0]))
    noise = np.random.default_rng(0).integers(0, 40, (MEASURED[1], MEASURED[0], 3))
    photograph = _encoded((noise + (grid % 200)[:, :, None]).astype(np.uint8), "JPEG")
    data = [photograph] * MEASURED_TOGETHER

    def by_pillow(batch: list[bytes]) -> None:
        service.each(lambda one: decode_to_fit(one, min_size=min_size, max_size=max_size), batch)

    seconds = {"cpu": seconds_of(by_pillow, data, wait) / MEASURED_TOGETHER}
    try:
        if any(one is None for one in decoder.decoded(data)):
            raise RuntimeError("it does not decode a plain photograph")
        seconds["gpu"] = seconds_of(decoder.decoded, data, wait) / MEASURED_TOGETHER
    except Exception as error:  # nvJPEG may be absent, or the driver too old
        logger.warning("JPEGs cannot be decoded on this GPU: %s", error)
        return False, seconds
    return seconds["gpu"] < seconds["cpu"], seconds


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()
