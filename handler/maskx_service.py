"""A batch of requests -> an answer for each, in order: parse, decode, predict, encode.

What a caller did wrong costs that caller a 400 and nobody else: only the requests that can be understood go through
the network together. Knows nothing of the server, so another one needs only its own small adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskx_answer import answer_body, error_body
from maskx_image import ImageError, decode
from maskx_model import ServedModel
from maskx_request import RequestError, Wishes, parse_request
from maskx_settings import Limits


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A body, in JSON, and the status that goes with it as HTTP has them."""

    status: int
    body: bytes


class Service:
    """Answers requests with one model; `name` and `version` are those the server knows it by."""

    def __init__(self, model: ServedModel, limits: Limits, *, name: str, version: str) -> None:
        self._model = model
        self._limits = limits
        self._name = name
        self._version = version

    def answer(self, requests: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """One answer per request, in order."""
        read = [self._read(request) for request in requests]
        good = [one for one in read if not isinstance(one, Answer)]
        detections = iter(self._model.predict([image for image, _ in good], [wishes for _, wishes in good]))
        answers = []
        for one in read:
            if isinstance(one, Answer):
                answers.append(one)
                continue
            height, width = one[0].shape[:2]
            body = answer_body(
                next(detections),
                self._model.categories,
                height=height,
                width=width,
                model_name=self._name,
                model_version=self._version,
            )
            answers.append(self._within_limit(body))
        return answers

    def _read(self, request: Mapping[str, Any]) -> tuple[np.ndarray, Wishes] | Answer:
        """The decoded image and its wishes, or the answer that says why there are none."""
        try:
            parsed = parse_request(request, self._model.defaults)
            image = decode(parsed.image, max_pixels=self._limits.max_pixels, max_side=self._limits.max_side)
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


def _refused(kind: str, message: str) -> Answer:
    return Answer(status=400, body=error_body(400, kind, message))
