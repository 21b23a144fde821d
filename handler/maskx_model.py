"""maskx.pt in memory: decoded images and wishes in, detections out (border 4).

Knows nothing of the server and nothing of the project that made the file: torch and torchvision run it, and the
file's own metadata.json says what its labels mean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401  (registers the operators that the TorchScript calls)
from torch import Tensor

from maskx_answer import Category, Detections
from maskx_request import MAX_DETECTIONS, Wishes

METADATA_NAME = "metadata.json"
FORMAT_VERSION = 1
WARM_UP_RUNS = 3
"""TorchScript watches the first run and rewrites itself in the second; the third shows that it is done."""


class ServedModel:
    """The network of one maskx.pt on one device, frozen.

    `categories` maps labels to what they stand for; `defaults` are the wishes of a request that has none.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        """Reads the file. Raises ValueError where it is no maskx.pt or its metadata is not understood."""
        extra = {METADATA_NAME: ""}
        try:
            module = torch.jit.load(str(path), map_location=device, _extra_files=extra)
        except RuntimeError as error:
            raise ValueError(f"{path.name} cannot be loaded as TorchScript: {error}") from error
        metadata = _metadata(extra[METADATA_NAME], path.name)
        self.device = device
        self.categories = {
            entry["label"]: Category(
                id=entry["id"], name=entry["name"], mask_supervised=entry["mask_supervised"]
            )
            for entry in metadata["categories"]
        }
        self.defaults = Wishes(
            score_threshold=float(metadata["defaults"]["score_threshold"]),
            max_detections=min(int(metadata["defaults"]["max_detections"]), MAX_DETECTIONS),
        )
        self._warm_up_side = int(metadata["input"]["min_size"])
        self._module = torch.jit.freeze(module.eval())

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray], wishes: Sequence[Wishes]) -> list[Detections]:
        """Detections of each image (uint8 [h, w, 3], RGB, upright), in order; the images may differ in size."""
        if not images:
            return []
        count = len(images)
        answers: list[dict[str, Tensor]] = self._module(
            [torch.from_numpy(image).to(self.device).permute(2, 0, 1).contiguous() for image in images],
            torch.tensor([image.shape[:2] for image in images], dtype=torch.int64),
            torch.tensor([wish.score_threshold for wish in wishes], dtype=torch.float32),
            torch.tensor([wish.max_detections for wish in wishes], dtype=torch.int64),
            torch.ones((count, len(self.categories) + 1), dtype=torch.bool),
            torch.ones((count,), dtype=torch.bool),
        )
        return [Detections(**{name: tensor.cpu().numpy() for name, tensor in one.items()}) for one in answers]

    def warm_up(self) -> None:
        """Runs the whole network, masks included, so that the first request is not the slow one."""
        noise = np.random.default_rng(0).integers(
            0, 256, (self._warm_up_side, self._warm_up_side, 3), dtype=np.uint8
        )
        wishes = Wishes(score_threshold=0.0, max_detections=self.defaults.max_detections)
        for _ in range(WARM_UP_RUNS):
            self.predict([noise], [wishes])


def _metadata(text: str | bytes, name: str) -> dict[str, Any]:
    """The file's metadata, complete. Raises ValueError where it is absent, of another format, or lacks something."""
    if not text:
        raise ValueError(f"{name} has no {METADATA_NAME} inside; write it with python -m export.torchscript")
    metadata: dict[str, Any] = json.loads(text)
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{name} has format_version {version!r}, this handler reads {FORMAT_VERSION}; export the checkpoint and "
            "make the archive with the same version of this project"
        )
    missing = {"categories", "defaults", "input"} - metadata.keys()
    if missing:
        raise ValueError(f"{name}'s {METADATA_NAME} lacks {sorted(missing)}")
    return metadata
