"""The handler that TorchServe loads; the only module that knows TorchServe.

It opens no network connection and writes no file. TorchServe wants exactly one class here.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes
from ts.utils.util import PredictionException

from maskx_metrics import KINDS, MEMORY_EVERY, memory_sample, samples_of
from maskx_request import queue_seconds
from maskx_served import load, sent
from maskx_service import Answer

logger = logging.getLogger(__name__)

LAST_RESORT = 5.0
"""Seconds that a worker whose device is lost has to end by itself."""


class MaskXHandler:
    """Mask^X R-CNN behind TorchServe: images in, answers out."""

    def initialize(self, context: Any) -> None:
        """Loads the model on the device that TorchServe assigned, and warms it up.

        Raises:
            ValueError: a setting or a file that is not as it should be, or a GPU that was asked for and is not there.
        """
        properties = context.system_properties
        served = load(
            Path(properties["model_dir"]),
            context.manifest["model"],
            context.model_yaml_config,
            name=context.model_name,
            gpu_id=properties.get("gpu_id"),
            batch_size=int(properties.get("batch_size") or 1),
        )
        self._model, self._service, self._description = served.model, served.service, served.description
        self._metrics = declared_metrics(context.metrics)
        self._memory_due = 0.0

    def handle(self, requests: list[dict[str, Any]], context: Any) -> list[bytes]:
        """One answer per request, in order; to the describe call, what runs here.

        What is wrong with a request costs its own caller a status of 400, and nobody else. Where the device is lost,
        everybody has a 503, and the process ends itself as soon as that is sent, so that TorchServe starts another.

        Over gRPC TorchServe drops the status of a single answer, so a client finds the error in the body. Only where
        the bad request is alone in its batch can gRPC be given a true status, by an exception; over REST that
        exception would put TorchServe's own body in place of ours, so it is raised for gRPC alone, our body its text.
        """
        if is_describe_call(context, requests):
            return [self._description]
        now = time.time()
        headers = [context.get_all_request_header(index) for index in range(len(requests))]
        by_grpc = [came_by_grpc(one) for one in headers]
        answers = self._service.answer(
            requests, [{} if grpc else one for grpc, one in zip(by_grpc, headers, strict=True)]
        )
        self._report(answers, by_grpc, [queue_seconds(one, now) for one in headers], context.model_name)
        if self._service.lost:
            end_after_answering(context)
        if len(answers) == 1 and answers[0].status != 200 and by_grpc[0]:
            raise PredictionException(answers[0].body.decode(), answers[0].status)
        for index in range(len(answers)):
            if by_grpc[index]:
                # What StreamPredictions asks for ends with this part. Without the word TorchServe 0.12 fails on the
                # answer and ends the worker; Predictions does not look for it.
                context.set_response_header(index, "ts_stream_next", "false")
        return [self._sent(context, index, answer, headers[index]) for index, answer in enumerate(answers)]

    def _sent(self, context: Any, index: int, answer: Answer, headers: Mapping[str, Any]) -> bytes:
        """The bytes to send for an answer, after its status and headers are set."""
        context.set_response_content_type(index, answer.content_type)
        if answer.status != 200:
            context.set_response_status(
                code=answer.status, phrase=HTTPStatus(answer.status).phrase, idx=index
            )
        body, others = sent(answer, headers)
        for name, value in others.items():
            context.set_response_header(index, name, value)
        return body

    def _report(
        self,
        answers: Sequence[Answer],
        by_grpc: Sequence[bool],
        queued: Sequence[float | None],
        model_name: str,
    ) -> None:
        """Hands the batch's samples to TorchServe, which reads them from the worker's output."""
        if not self._metrics:
            return
        samples = samples_of(answers, ["grpc" if one else "rest" for one in by_grpc], queued)
        now = time.monotonic()
        if now >= self._memory_due:
            self._memory_due = now + MEMORY_EVERY
            samples.append(memory_sample(str(self._model.device), self._model.memory_taken()))
        for sample in samples:
            metric = self._metrics.get(sample.name)
            if metric is not None:
                metric.add_or_update(sample.value, [*sample.labels, model_name, "Model"])


def declared_metrics(cache: Any) -> dict[str, Any]:
    """TorchServe's objects of the metrics that its metrics.yaml declares, by name; the others are not sent."""
    if cache is None:
        return {}
    declared = {}
    for name, kind in KINDS.items():
        try:
            declared[name] = cache.get_metric(name, MetricTypes(kind))
        except MetricsCacheKeyError:
            logger.warning("metrics.yaml does not declare the %s %s; it is not sent", kind, name)
    return declared


def end_after_answering(context: Any, end: Callable[[int], None] = os._exit) -> None:
    """Ends this process once its answers are sent, so that TorchServe starts another and asks it what waits.

    Nothing more can be read from TorchServe after this, only written; its worker ends when it tries. Should it not,
    the process is ended LAST_RESORT seconds from now. What TorchServe sends in between, if anything, is answered by it
    with 500, "Worker died.".
    """
    logger.error("the device is lost: this worker ends, and TorchServe starts another")
    context.cl_socket.shutdown(socket.SHUT_RD)
    timer = threading.Timer(LAST_RESORT, end, [1])
    timer.daemon = True
    timer.start()


def is_describe_call(context: Any, requests: list[dict[str, Any]]) -> bool:
    """Whether this is TorchServe's own question (GET /models/maskx?customized=true of the management port).

    It comes alone, with a header of its own and without data; who sends it with an image has the prediction.
    """
    if len(requests) != 1 or any(requests[0].values()):
        return False
    headers = context.get_all_request_header(0)
    return any(name.lower() == "describe" and value == "True" for name, value in headers.items())


def came_by_grpc(headers: Mapping[str, Any]) -> bool:
    """Whether a request came over gRPC: TorchServe hands over every header of an HTTP request, and none of gRPC's.

    A client of HTTP/1.1 must send Host; to one of HTTP/1.0, which need not, TorchServe itself adds Content-Length.
    """
    # The content types of fields are among them, as mappings, and a field may be called host.
    return not any(
        name.lower() in ("host", "content-length") and isinstance(value, str)
        for name, value in headers.items()
    )
