"""Requests that the handler answers before TorchServe sends any, so that the first is as fast as the tenth.

Each goes the whole way of a real one: threads that decode, both canvases that photographs come in, the forms of masks,
the overlay's font, compression.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskx_cuda_decode import CudaDecoder, cuda_decoder
from maskx_errors import MaskxError
from maskx_headers import compressed
from maskx_model import ServedModel
from maskx_parameters import Wishes
from maskx_request import ImageRequest
from maskx_service import Service

PHOTOGRAPH = (640, 480)

LARGE = (1920, 1080)
"""Width and height of the photograph that both ways of decoding are tried with."""

TRIES = 4
"""Of each way; the fastest counts."""


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


def choose_decoding(
    service: Service,
    model: ServedModel,
    asked: str,
    *,
    together: int,
    make: Callable[[torch.device], CudaDecoder] = cuda_decoder,
) -> dict[str, Any]:
    """Lets the service decode on the GPU where that was asked for, or is faster for `together` photographs.

    Args:
        asked: "auto", "cpu" or "gpu".
        make: gives a device's decoder, or raises ValueError.

    Returns:
        What was chosen, for whoever operates it: "by" is "cpu" or "gpu"; "cpu_ms" and "gpu_ms" are what `images` of
        `LARGE` took until they lay on the device; "reason" is why the GPU's way cannot be taken.

    Raises:
        ValueError: "gpu" was asked for and cannot be had.
    """
    service.cuda_decoder = None
    report: dict[str, Any] = {"asked": asked, "by": "cpu"}
    if asked == "cpu" or (asked == "auto" and model.device.type == "cpu"):
        return report
    photographs = [ImageRequest(image=_photograph(), wishes=Wishes(score_threshold=0.0, max_detections=1))]
    photographs *= together
    try:
        decoder = make(model.device)
        if None in decoder.images(
            [one.image for one in photographs], max_pixels=LARGE[0] * LARGE[1], max_side=LARGE[0]
        ):
            raise ValueError("it failed on a photograph; the log says why")
    except ValueError as error:
        if asked == "gpu":
            raise ValueError(
                f"maskx.decode is gpu, but the GPU cannot decode: {error}; set auto or cpu"
            ) from error
        return report | {"reason": str(error)}
    report["images"] = together
    for way, one in (("cpu", None), ("gpu", decoder)):
        service.cuda_decoder = one
        report[f"{way}_ms"] = round(1e3 * min(_seconds(service, model, photographs) for _ in range(TRIES)), 1)
    if asked == "gpu" or report["gpu_ms"] < report["cpu_ms"]:
        report["by"] = "gpu"
    else:
        service.cuda_decoder = None
    return report


def _seconds(service: Service, model: ServedModel, photographs: list[ImageRequest]) -> float:
    """From files to pixels that lie on the device; limits that refuse the photograph make it short, and no error."""
    begin = time.perf_counter()
    decoded = service.decoded(photographs)
    model.bring([one[0].pixels for one in decoded if not isinstance(one, MaskxError)])
    return time.perf_counter() - begin


def _photograph() -> bytes:
    """A JPEG of `LARGE` with soft shapes and some noise, always the same."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (18, 32, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize(LARGE, Image.Resampling.BICUBIC), np.int16)
    noisy = soft + random.integers(-6, 7, soft.shape, dtype=np.int16)
    return _encoded(np.clip(noisy, 0, 255).astype(np.uint8), "JPEG")


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()
