"""A part of the images -> its results, by the handler's own batch path (`maskx_service.Service`), as in TorchServe."""

import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from maskx_forward import Lanes
from maskx_model import METADATA_NAME, ServedModel
from maskx_parameters import Category, CategoryIndex, GivenParameters, Parameters
from maskx_served import lanes_of
from maskx_service import Service
from maskx_settings import Limits, Settings, read_settings
from offline.plan import Image

NO_BOUND = 2**40
"""Bytes of an image or answer: what protects a server from its callers protects nobody here."""

Record = dict[str, Any]
"""Of one image: `id`, `file_name`, and `height`, `width`, `detections`, or `error` (`type`, `message`)."""


class DeviceFailed(RuntimeError):
    """The device computes no more; what was not yet done waits for another run."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What an archive holds: the TorchScript file, its metadata, and the settings that it is served with."""

    torchscript: bytes = field(repr=False)
    metadata: dict[str, Any]
    settings: Settings

    def categories(self) -> list[dict[str, Any]]:
        """The categories as a COCO file has them."""
        return [{"id": one["id"], "name": one["name"]} for one in self.metadata["categories"]]


def read_model(data: bytes, source: str) -> Model:
    """The model in an archive (.mar), or in a maskx.pt alone, which is run with the handler's default settings.

    Raises ValueError: it is neither.
    """
    configuration: Any = None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if "MAR-INF/MANIFEST.json" in archive.namelist():
                manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
                if "configFile" in manifest:
                    configuration = yaml.safe_load(archive.read(manifest["configFile"]))
                data = archive.read(manifest["serializedFile"])
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(f"/extra/{METADATA_NAME}")]
            metadata = json.loads(archive.read(name))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(
            f"{source} is neither an archive of python -m export.archive nor a file of python -m export.torchscript "
            f"({error})"
        ) from error
    return Model(torchscript=data, metadata=metadata, settings=read_settings(configuration))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How to predict. None: as the model has it. `precision` as in the handler's settings; `threads` 0: torch's own."""

    score_threshold: float | None = None
    max_detections: int | None = None
    categories: str | None = None
    precision: str = "auto"
    device: str = "cpu"
    threads: int = 0

    def parameters(self) -> dict[str, str]:
        """The fields that go with each image, as in a request."""
        names = ("score_threshold", "max_detections", "categories")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {name: str(value) for name, value in given.items()} | {"mask_format": "rle"}


def check(model: Model, wanted: Wanted) -> None:
    """That the handler takes the parameters, before any image is read. Raises ValueError as it would answer."""
    given = GivenParameters()
    for name, value in wanted.parameters().items():
        given.add(name, value, "the command")
    categories = {
        one["label"]: Category(id=one["id"], name=one["name"], mask_supervised=one["mask_supervised"])
        for one in model.metadata["categories"]
    }
    given.applied_to(Parameters(score_threshold=0.5, max_detections=1), CategoryIndex(categories))


class Predictor:
    """The model of an archive, ready to predict.

    Raises ValueError: the model or a setting is not what the handler takes.
    """

    def __init__(self, model: Model, wanted: Wanted) -> None:
        if wanted.threads:
            torch.set_num_threads(wanted.threads)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "maskx.pt"
            path.write_bytes(model.torchscript)
            served = ServedModel(path, torch.device(wanted.device), precision=wanted.precision)
        limits = model.settings.limits
        self._limits: Limits = replace(limits, max_image_bytes=NO_BOUND, max_answer_bytes=NO_BOUND)
        self._service = Service(served, self._limits, name="maskx", version="offline")
        self._service.lanes = Lanes(lanes_of(served))
        self._parameters = wanted.parameters()

    def predict(self, images: Sequence[Image], contents: Sequence[bytes | OSError]) -> list[Record]:
        """The records of images from their files' contents, in order.

        Raises DeviceFailed: nothing can be computed any more.
        """
        readable = [data for data in contents if isinstance(data, bytes)]
        answers = iter(self._service.answer([{"body": data, **self._parameters} for data in readable]))
        records = []
        for image, data in zip(images, contents, strict=True):
            record: Record = {"id": image.id, "file_name": image.name}
            if isinstance(data, bytes):
                record |= _of_answer(json.loads(next(answers).body))
            else:
                record["error"] = {"type": "Unreadable", "message": str(data) or type(data).__name__}
            records.append(record)
        if self._service.lost:
            raise DeviceFailed("the device failed; start the same command again to go on")
        return records


def _of_answer(answer: dict[str, Any]) -> Record:
    if "detections" in answer:
        return {**answer["image"], "detections": answer["detections"]}
    error = answer.get("error", {"type": "InvalidImage", "message": "the file is JSON, not an image"})
    return {"error": {"type": error["type"], "message": error["message"]}}
