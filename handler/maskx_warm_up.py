"""What runs before TorchServe sends anything, so that the first request is as fast as the tenth.

First the network alone, then requests that go the whole way of a real one: threads that decode, both canvases that
photographs come in, the forms of masks, the overlay's font, compression. On a GPU it is also seen who decodes faster.
"""

import io
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskx_answer import compressed
from maskx_cuda_decode import CudaDecoder, cuda_decoder
from maskx_errors import MaskxError
from maskx_forward import is_out_of_memory
from maskx_model import ServedModel
from maskx_parameters import Parameters
from maskx_request import ImageRequest
from maskx_service import Service

logger = logging.getLogger(__name__)

Run = tuple[tuple[float, float], list[Parameters]]
"""Height and width of an image, as shares of the network's shorter side, and the parameters of a
batch of such images."""

SHAPES = ((1.25, 1.25), (1.25, 1.67), (1.67, 1.25))
"""Square, lying and upright, a quarter larger than the network's input, so that they are resized too."""

MOST_TOGETHER = 16
"""The largest batch that a GPU is warmed up with."""

PHOTOGRAPH = (640, 480)
"""Width and height of the photographs that the service is warmed up with."""

LARGE = (1920, 1080)
"""Width and height of the photograph that both ways of decoding are tried with."""

TRIES = 4
"""Of each way; the fastest counts."""

SMALL_NETWORK = 0.1
"""Seconds that an image takes, beyond which nobody gains by computing two of them at a time."""
LATER = 4 / 3
"""Times as long as it could, that an image may take where several are answered at a time: less than that two threads
gain nothing worth a core."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How long an image takes, and all numbers that were answered for some."""

    seconds: float
    answers: bytes


def warm_up_network(model: ServedModel, batch_size: int = 1) -> int:
    """Runs the network as requests will, so that none of them is the slow one; returns how many runs it took.

    With objects, without any, and without masks. On a GPU, where libraries choose and load a kernel for every new
    shape, also upright, lying and square images, in every number from one to `batch_size` and with unequal parameters;
    on a CPU one image alone, for what is left there is short and start-up would be long. Larger batches than there
    is memory for are left out; requests are then answered in halves.
    """
    runs = first_runs(batch_size if model.device.type == "cuda" else 1, model.defaults.max_detections)
    for done, ((height, width), parameters) in enumerate(runs):
        widest = round(1.25 * model.max_size)
        image = drawn(round(height * model.min_size), min(round(width * model.min_size), widest))
        try:
            model.predict([image] * len(parameters), parameters)
            continue
        except Exception as error:  # PyTorch has no narrower class for all that a network can raise
            if len(parameters) == 1 or not is_out_of_memory(error):
                raise
        logger.warning("no memory to warm up with %d images at once, nor with more", len(parameters))
        model.free_memory()
        return done
    return len(runs)


def first_runs(batch_size: int, max_detections: int) -> list[Run]:
    """What a network is warmed up with, for batches of up to `batch_size`."""
    objects = Parameters(score_threshold=0.0, max_detections=max_detections)
    nothing, no_masks = replace(objects, score_threshold=2.0), replace(objects, mask_format="none")
    runs: list[Run] = [(SHAPES[0], [parameters]) for parameters in (objects, nothing, no_masks)]
    if batch_size > 1:
        runs += [(shape, [objects]) for shape in SHAPES[1:]]
        for together in range(2, min(batch_size, MOST_TOGETHER) + 1):
            unequal = [(nothing, objects, no_masks)[number % 3] for number in range(together)]
            runs += [(shape, wished) for shape in SHAPES for wished in ([objects] * together, unequal)]
    return runs


def choose_lanes(model: ServedModel, measure: Callable[[ServedModel, int], Measured] | None = None) -> int:
    """Batches that are best answered at a time, each with its share of torch's threads: the most in which an image
    takes at most `LATER` times as long as in the fastest, and is answered as with all threads to the last bit.

    A small network gains next to nothing by a second thread, which then answers another batch better. `measure` is
    what an image takes with so many threads, and the answers.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not answers_several(model):
        return 1
    measure = measure or _measured
    try:
        found = {1: measure(model, threads)}
        if found[1].seconds > SMALL_NETWORK:
            return 1
        lanes = 2
        while threads % lanes == 0:
            found[lanes] = measure(model, threads // lanes)
            lanes *= 2
    finally:
        torch.set_num_threads(threads)
    latest = LATER * min(one.seconds for one in found.values())
    alike = {lanes: one for lanes, one in found.items() if one.answers == found[1].answers}
    chosen = max(lanes for lanes, one in alike.items() if lanes == 1 or one.seconds <= latest)
    words = {
        lanes: " (rounded otherwise)" for lanes, one in found.items() if one.answers and lanes not in alike
    }
    shown = ", ".join(
        f"{1e3 * one.seconds:.1f} ms with {threads // lanes}{words.get(lanes, '')}"
        for lanes, one in found.items()
    )
    logger.info("%d batches at a time: an image takes %s threads", chosen, shown)
    return chosen


def answers_several(model: ServedModel) -> bool:
    """Whether several threads may ask the model at a time: on a CPU, where TorchScript computes all of it."""
    return model.device.type == "cpu" and model.engine["used"] == "torchscript"


def _measured(model: ServedModel, threads: int) -> Measured:
    """The fastest of `TRIES`, and the answers for an image of each of `SHAPES`; of a network that is not small half of
    the tries alone. The network was run before."""
    torch.set_num_threads(threads)
    images = [drawn(round(h * model.min_size), round(w * model.min_size)) for h, w in SHAPES]
    taken: list[float] = []
    while len(taken) < TRIES:
        begin = time.perf_counter()
        model.predict(images[:1], [model.defaults])
        taken.append(time.perf_counter() - begin)
        if len(taken) == TRIES // 2 and min(taken) > SMALL_NETWORK:
            return Measured(seconds=min(taken), answers=b"")
    wished = replace(model.defaults, score_threshold=0.0)
    answers = [model.predict([image], [wished])[0] for image in images]
    numbers = [one for answer in answers for one in vars(answer).values() if one is not None]
    return Measured(seconds=min(taken), answers=b"".join(one.tobytes() for one in numbers))


def drawn(height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: noise with rectangles of several sizes, always the same."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    for share in (0.5, 0.3, 0.2, 0.1, 0.05):
        h, w = max(round(share * height), 1), max(round(share * width), 1)
        top, left = random.integers(0, height - h + 1), random.integers(0, width - w + 1)
        pixels[top : top + h, left : left + w] = random.integers(0, 256, 3, dtype=np.uint8)
    return pixels


def warm_up_service(service: Service) -> None:
    """Answers a batch of a landscape and a portrait, and an overlay, which has run lengths drawn.

    Raises ValueError: one failed; the message says with what. One that the settings' limits refuse is no failure.
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
    wished = Parameters(score_threshold=0.0, max_detections=1)
    photographs = [ImageRequest(image=_photograph(), parameters=wished)] * together
    try:
        decoder = make(model.device)
        files = [one.image for one in photographs]
        if None in decoder.images(files, max_pixels=LARGE[0] * LARGE[1], max_side=LARGE[0]):
            raise ValueError("it failed on a photograph; the log says why")
    except ValueError as error:
        if asked == "gpu":
            cannot = f"the GPU cannot decode: {error}"
            raise ValueError(f"maskx.decode is gpu, but {cannot}; set auto or cpu") from error
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
    """How long it takes from files to pixels on the device; a photograph that the limits refuse counts as short."""
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
