"""A batch of requests -> an answer for each, in order: parse, decode, predict, encode.

What a caller did wrong costs that caller a 400 and nobody else: only the requests that can be understood go through
the network together. Knows nothing of the server, so another one needs only its own small adapter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from maskx_answer import answer_body, error_body
from maskx_image import DecodedImage, ImageError, decode_to_fit
from maskx_model import ServedModel
from maskx_request import RequestError, Wishes, parse_request
from maskx_settings import Limits

MOST_DECODERS = 8
"""Images decoded at a time, however many cores there are: each may hold a whole image a second time."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A body, in JSON, and the status that goes with it as HTTP has them."""

    status: int
    body: bytes


class Service:
    """Answers requests with one model; `name` and `version` are those the server knows it by.

    The images of a batch are decoded in parallel, one thread per core and at most MOST_DECODERS; Pillow decodes without
    the interpreter's lock. Memory for images: 3 bytes for each pixel of the batch, as decoded, and while a
    thread decodes 4 more for each pixel of its image (up to 17 in some formats, see maskx_image). A JPEG of 12
    megapixels is decoded at half its sides for a network of 800 x 1333: 8 of them take 73 MB and 12 MB a thread; 8 PNGs
    of that size 293 MB and 49 MB a thread; 8 at the default limit of 64 Mi pixels 1.6 GB and 268 MB a thread.
    `max_pixels` in the settings lowers the bound.
    """

    def __init__(self, model: ServedModel, limits: Limits, *, name: str, version: str) -> None:
        self._model = model
        self._limits = limits
        self._name = name
        self._version = version
        self._decoders = ThreadPoolExecutor(min(usable_cores(), MOST_DECODERS), thread_name_prefix="decoder")

    def answer(self, requests: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """One answer per request, in order."""
        if len(requests) > 1:
            read = list(self._decoders.map(self._read, requests))
        else:
            read = [self._read(request) for request in requests]
        good = [one for one in read if not isinstance(one, Answer)]
        detections = iter(
            self._model.predict(
                [image.pixels for image, _ in good],
                [wishes for _, wishes in good],
                [(image.height, image.width) for image, _ in good],
            )
        )
        answers = []
        for one in read:
            if isinstance(one, Answer):
                answers.append(one)
                continue
            image, _ = one
            body = answer_body(
                next(detections),
                self._model.categories,
                height=image.height,
                width=image.width,
                model_name=self._name,
                model_version=self._version,
            )
            answers.append(self._within_limit(body))
        return answers

    def _read(self, request: Mapping[str, Any]) -> tuple[DecodedImage, Wishes] | Answer:
        """The decoded image and its wishes, or the answer that says why there are none."""
        try:
            parsed = parse_request(request, self._model.defaults)
            image = decode_to_fit(
                parsed.image,
                min_size=self._model.min_size,
                max_size=self._model.max_size,
                max_pixels=self._limits.max_pixels,
                max_side=self._limits.max_side,
            )
        except RequestError as error:
            return _refused("InvalidRequest", str(error))
        except ImageError as error:
            return _refused("InvalidImage", str(error))
        return image, parsed.wishes

    def _within_limit(self, body: bytes) -> Answer:
        if len(body) <= self._limits.max_answer_bytes:
            return Answer(status=200, body=body)
        return _refused(
            "AnswerTooLarge",
            f"the answer has {len(body)} bytes, at most {self._limits.max_answer_bytes} are allowed; raise "
            "score_threshold or lower max_detections",
        )


def usable_cores() -> int:
    """Cores that this process may run on, where the system tells; else all there are. At least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(len(os.sched_getaffinity(0)), 1)
    return os.cpu_count() or 1


def _refused(kind: str, message: str) -> Answer:
    return Answer(status=400, body=error_body(400, kind, message))
