"""The handler that TorchServe loads; the only module that knows TorchServe.

It opens no network connection and writes no file. TorchServe wants exactly one class here.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from ts.utils.util import PredictionException

from maskx_model import ServedModel
from maskx_service import Answer, Service
from maskx_settings import read_settings

logger = logging.getLogger(__name__)


class MaskXHandler:
    """Mask^X R-CNN behind TorchServe: images in, border 5's answers out."""

    def initialize(self, context: Any) -> None:
        """Loads the model on the device that TorchServe assigned, and warms it up.

        Raises:
            ValueError: a setting or a file that is not as it should be, or a GPU that was asked for and is not there.
        """
        settings = read_settings(context.model_yaml_config)
        properties = context.system_properties
        device = choose_device(settings.device_type, properties.get("gpu_id"), torch.cuda.is_available())
        manifest = context.manifest["model"]
        path = Path(properties["model_dir"]) / manifest["serializedFile"]
        model = ServedModel(path, device, precision=settings.precision)
        model.warm_up()
        self._description = json.dumps(model.description() | {"precision_asked": settings.precision}).encode()
        self._service = Service(
            model, settings.limits, name=context.model_name, version=str(manifest["modelVersion"])
        )
        logger.info(
            "%s is ready on %s in %s, %d categories",
            context.model_name,
            device,
            model.precision,
            len(model.categories),
        )

    def handle(self, requests: list[dict[str, Any]], context: Any) -> list[bytes]:
        """One answer per request, in order; to the describe call, what runs here.

        A bad request costs its own caller a 400 and nobody else.

        Over gRPC TorchServe drops the status of a single answer, so a client finds the error in the body. Only where
        the bad request is alone in its batch can gRPC be given a true status, by an exception; over REST that
        exception would put TorchServe's own body in place of ours, so it is raised for gRPC alone, our body its text.
        """
        if is_describe_call(context, requests):
            return [self._description]
        answers = self._service.answer(requests)
        if len(answers) == 1 and answers[0].status != 200 and came_by_grpc(context, 0):
            raise PredictionException(answers[0].body.decode(), answers[0].status)
        for index, answer in enumerate(answers):
            self._describe(context, index, answer)
        return [answer.body for answer in answers]

    def _describe(self, context: Any, index: int, answer: Answer) -> None:
        context.set_response_content_type(index, "application/json")
        if answer.status != 200:
            context.set_response_status(code=answer.status, phrase="Bad Request", idx=index)


def is_describe_call(context: Any, requests: list[dict[str, Any]]) -> bool:
    """Whether this is TorchServe's own question (GET /models/maskx?customized=true of the management port).

    It comes alone, with a header of its own and without data; who sends it with an image has the prediction.
    """
    if len(requests) != 1 or any(requests[0].values()):
        return False
    headers = context.get_all_request_header(0)
    return any(name.lower() == "describe" and value == "True" for name, value in headers.items())


def came_by_grpc(context: Any, index: int) -> bool:
    """Whether a request came over gRPC: TorchServe hands over every header of an HTTP request, and none of gRPC's.

    A client of HTTP/1.1 must send Host; one of HTTP/1.0 that sends none is taken for gRPC and gets TorchServe's form
    of the error, with the same status and message.
    """
    return all(name.lower() != "host" for name in context.get_all_request_header(index))


def choose_device(device_type: str, gpu_id: int | None, cuda: bool) -> torch.device:
    """The device to serve on; never silently another one than was asked for.

    Args:
        device_type: "cpu", "gpu" or "" as in model-config.yaml.
        gpu_id: the GPU that TorchServe assigned to this worker; None where it assigned none.
        cuda: whether PyTorch can use a GPU here.

    Raises:
        ValueError: a GPU was asked for and cannot be used, or one is there and TorchServe does not see it.
    """
    if device_type == "cpu":
        return torch.device("cpu")
    if gpu_id is None:
        if device_type == "gpu":
            raise ValueError(
                "model-config.yaml asks for deviceType gpu, but TorchServe found no GPU; it looks for one with "
                "nvidia-smi. Put nvidia-smi on the PATH, or set deviceType: cpu"
            )
        if cuda:
            raise ValueError(
                "PyTorch can use a GPU here, but TorchServe found none (is nvidia-smi on the PATH?) and would serve on "
                "the CPU; set deviceType: cpu in model-config.yaml if that is what you want"
            )
        return torch.device("cpu")
    if not cuda:
        raise ValueError(
            f"TorchServe assigned GPU {gpu_id}, but PyTorch cannot use a GPU here; install a PyTorch that fits the "
            "driver, or set deviceType: cpu in model-config.yaml"
        )
    return torch.device("cuda", gpu_id)
