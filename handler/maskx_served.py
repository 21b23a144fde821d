"""What every server of this model does around the service: loads it, warms it up, describes it, sends its answers.

Knows none of them; `maskx_handler` is TorchServe's side of it.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from maskx_answer import LEAST_COMPRESSED, compressed
from maskx_forward import Lanes
from maskx_image import FORMATS
from maskx_model import ServedModel
from maskx_openapi import Described, openapi_document
from maskx_parameters import MASK_FORMATS, MAX_DETECTIONS, OUTPUTS
from maskx_request import accepts_gzip, traced
from maskx_service import JSON, Answer, Service
from maskx_settings import Settings, read_settings
from maskx_warm_up import answers_several, choose_decoding, choose_lanes, warm_up_network, warm_up_service

LANES = "MASKX_LANES"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model that is ready to answer: itself, its service, the answer to who asks what runs here, and the OpenAPI
    document of what it takes and gives, both in JSON; and how many batches are best asked at a time."""

    model: ServedModel
    service: Service
    description: bytes
    openapi: bytes
    lanes: int


def load(
    folder: Path,
    manifest: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    *,
    name: str,
    gpu_id: int | None,
    batch_size: int,
) -> Served:
    """Loads the model on its device, and warms it up.

    Args:
        folder: with the archive's files.
        manifest: the section `model` of the archive's manifest.
        config: its model-config.yaml, parsed.
        name: that the server knows the model by.
        gpu_id: that the server assigned; None where it assigned none.
        batch_size: the most requests that are answered at once.

    Raises:
        ValueError: a setting or a file that is not as it should be, or a GPU that was asked for and is not there.
    """
    settings = read_settings(config)
    device = choose_device(settings.device_type, gpu_id, torch.cuda.is_available())
    model = ServedModel(
        folder / manifest["serializedFile"], device, precision=settings.precision, engine=settings.engine
    )
    service = Service(model, settings.limits, name=name, version=str(manifest["modelVersion"]))
    decoding = choose_decoding(service, model, settings.decode, together=batch_size)
    begin = time.monotonic()
    runs = warm_up_network(model, batch_size)
    service.lanes = Lanes(lanes_of(model))
    warm_up_service(service)
    logger.info(
        "%s is ready on %s in %s by %s, %d categories; warmed up by %d runs in %.1f s; JPEGs decoded by %s",
        name,
        device,
        model.precision,
        model.engine["used"],
        len(model.categories),
        runs,
        time.monotonic() - begin,
        decoding,
    )
    document = openapi_document(
        Described(
            name=name,
            version=str(manifest["modelVersion"]),
            defaults=model.defaults,
            categories={one.id: one.name for one in model.categories.values()},
            limits=settings.limits,
        )
    )
    return Served(
        model=model,
        service=service,
        description=description(model, settings, decoding, service.lanes.count),
        openapi=json.dumps(document).encode(),
        lanes=service.lanes.count,
    )


def lanes_of(model: ServedModel) -> int:
    """In how many lanes the model should compute (`maskx_forward.Lanes`).

    As MASKX_LANES says: a number, or auto, the default, for what is found faster and answers alike.

    Raises:
        ValueError: MASKX_LANES is no number that can be had here.
    """
    asked = os.environ.get(LANES) or "auto"
    if asked == "auto":
        return choose_lanes(model)
    threads = torch.get_num_threads()
    most = threads if answers_several(model) else 1
    if not (asked.isdecimal() and 1 <= int(asked) <= most):
        raise ValueError(
            f"{LANES} is {asked!r}; expected auto or a whole number from 1 to {most}: this worker has {threads} "
            "threads, and several lanes are for a CPU and TorchScript alone"
        )
    return int(asked)


def sent(answer: Answer, headers: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """The bytes to send over HTTP for an answer, packed where the request's headers allow it, and headers for them."""
    # The error's type is for the proxy, which must tell the error from the server's own of the same status.
    others = {"x-error-type": answer.kind} if answer.status != 200 else {}
    others |= traced(headers)
    if answer.content_type != JSON or len(answer.body) < LEAST_COMPRESSED or not accepts_gzip(headers):
        return answer.body, others
    return compressed(answer.body), others | {"content-encoding": "gzip", "vary": "accept-encoding"}


def description(model: ServedModel, settings: Settings, decoding: Mapping[str, Any], lanes: int) -> bytes:
    """The answer to the describe call, in JSON: what runs here, and what a request may ask of it.

    `decoding` is what `maskx_warm_up.choose_decoding` found.
    """
    content = model.description() | {
        "decode": dict(decoding),
        "lanes": lanes,
        "precision_asked": settings.precision,
        "limits": asdict(settings.limits) | {"max_detections": MAX_DETECTIONS},
        "mask_formats": MASK_FORMATS,
        "outputs": OUTPUTS,
        "image_formats": FORMATS,
    }
    return json.dumps(content).encode()


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
