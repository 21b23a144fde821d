"""Images through the network together, so that what fails costs only the image that made it fail.

TorchScript turns PyTorch's own classes of exceptions into a RuntimeError, or into torch.jit.Error, with a trace that
quotes the source; so the last message in the text tells whether memory ran out, the device is lost, or an image is at
fault.
"""

import itertools
import logging
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch

from maskx_answer import Detections
from maskx_cuda_decode import DeviceImage
from maskx_errors import INTERNAL, OUT_OF_MEMORY, MaskxError
from maskx_image import DecodedImage
from maskx_model import ServedModel
from maskx_parameters import Parameters

logger = logging.getLogger(__name__)

OUT_OF_MEMORY_MARKS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
)
"""In messages of CUDA's allocator and of PyTorch's for CPUs (Linux, Windows)."""

LOST_DEVICE_MARKS = (
    "device-side assert",
    "illegal memory access",
    "illegal address",
    "illegal instruction",
    "invalid program counter",
    "misaligned address",
    "hardware stack error",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable ecc",
    "uncorrectable nvlink",
    "context is destroyed",
    "unknown error",
)
"""CUDA's errors after which the process must be ended and started again, as it says where it describes cudaError_t."""


class DeviceLost(Exception):
    """The device computes no more for this process, which must be ended and started again."""


class Lanes:
    """Up to `count` parts of a batch, or of several batches, are computed at a time, each with its share of torch's
    threads. `taken` are the parts under way, those that wait too.

    A thread that asks computes a part itself, and others those that are left.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.taken = 0
        self._lock = threading.Lock()
        self._free = threading.Semaphore(count)
        self._share = max(torch.get_num_threads() // count, 1)
        self._others = ThreadPoolExecutor(count - 1, "lane") if count > 1 else None

    def predict_each(
        self,
        model: ServedModel,
        images: Sequence[DecodedImage | DeviceImage],
        parameters: Sequence[Parameters],
    ) -> list[Detections | MaskxError]:
        """As `predict_each`, a part in each lane that is free; whole, in the next lane, where none is.

        So parts are larger where many ask at a time, and none waits for another.
        """
        if self._others is None or not images:
            return predict_each(model, images, parameters)
        with self._lock:
            count = min(max(self.count - self.taken, 1), len(images))
            self.taken += count
        ends = [len(images) * part // count for part in range(count + 1)]
        work = [(model, images[begin:end], parameters[begin:end]) for begin, end in itertools.pairwise(ends)]
        others = [self._others.submit(self._computed, *one) for one in work[1:]]
        try:
            mine = self._computed(*work[0])
        finally:
            wait(others)
        return [one for answers in (mine, *(one.result() for one in others)) for one in answers]

    def _computed(self, *work: Any) -> list[Detections | MaskxError]:
        """A part's answers, once a lane is free, by the lane's share of threads."""
        before = torch.get_num_threads()
        try:
            with self._free:
                torch.set_num_threads(self._share)
                return predict_each(*work)
        finally:
            torch.set_num_threads(before)
            with self._lock:
                self.taken -= 1


def predict_each(
    model: ServedModel, images: Sequence[DecodedImage | DeviceImage], parameters: Sequence[Parameters]
) -> list[Detections | MaskxError]:
    """Detections of each image, in order, or the error in its place.

    Where there is no memory for all of them, each half is tried by itself, down to one image. Where the network fails
    in another way, each is tried by itself, and the one that fails alone is the one at fault.

    Args:
        images: at most as many as may be computed at once.
        parameters: one for each image.

    Raises:
        DeviceLost: nothing can be computed any more.
    """
    try:
        sizes = [(image.height, image.width) for image in images]
        return [*model.predict([image.pixels for image in images], parameters, sizes)]
    except Exception as error:  # PyTorch has no narrower class for all that a network can raise
        out_of_memory = is_out_of_memory(error)
        if is_lost_device(error) or not (out_of_memory or model.device_answers()):
            logger.exception("the device %s is lost", model.device)
            raise DeviceLost from error
        if len(images) == 1:
            return [_alone(error, images[0])]
        logger.warning(
            "%d images failed together, and are tried again: %s", len(images), type(error).__name__
        )
    # Out of the except block: the exception holds the tensors that the memory is wanted for.
    if out_of_memory:
        model.free_memory()
        middle = len(images) // 2
        parts = [slice(0, middle), slice(middle, None)]
    else:
        parts = [slice(i, i + 1) for i in range(len(images))]
    return [one for part in parts for one in predict_each(model, images[part], parameters[part])]


def _alone(error: Exception, image: DecodedImage | DeviceImage) -> MaskxError:
    size = f"{image.height} x {image.width} pixels, {tuple(image.pixels.shape[:2])} of them decoded"
    if is_out_of_memory(error):
        logger.error("out of memory for one image of %s", size)
        return MaskxError(
            OUT_OF_MEMORY,
            "there is no memory for this image on the server's device, even alone; ask again, send the image smaller, "
            "or lower max_detections",
        )
    logger.error("the network failed on an image of %s", size, exc_info=error)
    return MaskxError(
        INTERNAL,
        "the network failed on this image; if it does again, whoever runs the server finds why in its log",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory for what was asked; fewer images may still find it."""
    return isinstance(error, MemoryError) or _says(error, OUT_OF_MEMORY_MARKS)


def is_lost_device(error: BaseException) -> bool:
    """Whether the GPU answers nothing more to this process."""
    return "cuda" in str(error).lower() and _says(error, LOST_DEVICE_MARKS)


def _says(error: BaseException, marks: tuple[str, ...]) -> bool:
    message = re.split(r"(?m)^[\w.]*(?:Error|Exception): ", str(error))[-1].lower()
    return any(mark in message for mark in marks)
