"""maskx.pt in memory: decoded images and wishes in, detections out (border 4).

Knows nothing of the server and nothing of the project that made the file: torch and torchvision run it, and the
file's own metadata.json says what its labels mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision  # registers the operators that the TorchScript calls
from torch import Tensor

from maskx_answer import Detections
from maskx_categories import Category
from maskx_copies import Copies, unpacked
from maskx_cores import usable_cores
from maskx_engine import choose_precision, fusers_off, fusers_state, keep_freed_memory, ready_to_run
from maskx_request import MAX_DETECTIONS, Wishes

METADATA_NAME = "metadata.json"
FORMAT_VERSION = 1
WARM_UP_RUNS = 2
"""The first run optimises the TorchScript; the second has the memory that the first asked for."""


class ServedModel:
    """The network of one maskx.pt on one device, frozen.

    `categories` maps labels to what they stand for; `defaults` are the wishes of a request that has none; `precision`
    is what the network computes in; the network brings an image's shorter side to `min_size` pixels, its longer
    within `max_size`. `keypoint_names` are empty without keypoints; `keypoint_lines` join them by their numbers.
    """

    def __init__(self, path: Path, device: torch.device, *, precision: str = "auto") -> None:
        """Reads the file.

        Args:
            path: of the maskx.pt.
            device: to run on.
            precision: "auto", "float32", "bfloat16" or "float16" (`maskx_engine.choose_precision`).

        Raises:
            ValueError: the file is no maskx.pt, its metadata is not understood, or the precision is not for it.
        """
        fusers_off()
        extra = {METADATA_NAME: ""}
        try:
            module = torch.jit.load(str(path), map_location=device, _extra_files=extra)
        except RuntimeError as error:
            raise ValueError(f"{path.name} cannot be loaded as TorchScript: {error}") from error
        metadata = _metadata(extra[METADATA_NAME], path.name)
        reducible = metadata.get("reducible", ())
        self.precision = choose_precision(precision, device, reducible)
        self.device = device
        keypoints: dict[str, Any] = metadata.get("keypoints", {})
        self.keypoint_names = tuple(keypoints.get("names", ()))
        self.keypoint_lines = tuple((int(one), int(other)) for one, other in keypoints.get("lines", ()))
        self.categories = {
            entry["label"]: Category(
                id=entry["id"],
                name=entry["name"],
                mask_supervised=entry["mask_supervised"],
                keypoints=entry["label"] in keypoints.get("labels", ()),
            )
            for entry in metadata["categories"]
        }
        self.defaults = Wishes(
            score_threshold=float(metadata["defaults"]["score_threshold"]),
            max_detections=min(int(metadata["defaults"]["max_detections"]), MAX_DETECTIONS),
        )
        self.min_size = int(metadata["input"]["min_size"])
        self.max_size = int(metadata["input"]["max_size"])
        if device.type == "cpu":
            keep_freed_memory()
            if torch.get_num_threads() > usable_cores():
                torch.set_num_threads(usable_cores())
        self._module = ready_to_run(module.eval(), device, self.precision, reducible)
        self._copies = Copies(device)

    @torch.inference_mode()
    def predict(
        self,
        images: Sequence[np.ndarray | Tensor],
        wishes: Sequence[Wishes],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Detections]:
        """Detections of each image, in order, in pixels of the original; the images may differ in size.

        Args:
            images: uint8 [h, w, 3], RGB, upright, perhaps scaled down by the decoder, on the host or on the device.
            wishes: one for each image.
            sizes: height and width of each upright original; None where no image was scaled down.
        """
        if not images:
            return []
        originals = [tuple(image.shape[:2]) for image in images] if sizes is None else list(sizes)
        asked = (
            torch.tensor(originals, dtype=torch.int64),
            torch.tensor([wish.score_threshold for wish in wishes], dtype=torch.float32),
            torch.tensor([wish.max_detections for wish in wishes], dtype=torch.int64),
            self._class_mask(wishes),
            torch.tensor([wish.mask_format != "none" for wish in wishes]),
        )
        given = self._copies.images_in(images)
        if hasattr(self._module, "packed"):
            numbers, table = self._module.packed(given, *asked)
            return unpacked(self._copies.out(numbers), table, keypoints=len(self.keypoint_names))
        answers: list[dict[str, Tensor]] = self._module(given, *asked)  # a file of before there was `packed`
        return [Detections(**{name: tensor.cpu().numpy() for name, tensor in one.items()}) for one in answers]

    def _class_mask(self, wishes: Sequence[Wishes]) -> Tensor:
        """bool [N, C+1]: the labels that each request asks for."""
        mask = torch.ones((len(wishes), len(self.categories) + 1), dtype=torch.bool)
        for of_one, wish in zip(mask, wishes, strict=True):
            if wish.labels is not None:
                of_one[:] = False
                of_one[list(wish.labels)] = True
        return mask

    def free_memory(self) -> None:
        """Gives back what PyTorch keeps for later on a GPU; on a CPU there is nothing to give."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def device_answers(self) -> bool:
        """Whether the device still computes; a GPU may do so no more for the rest of the process' life."""
        try:
            return bool(torch.ones(1, device=self.device).item() == 1)
        except Exception:  # whatever class this version of PyTorch gives a broken CUDA context
            return False

    def memory_taken(self) -> int:
        """Bytes taken on the GPU, by whoever; on a CPU those that this process has resident (0: cannot be told)."""
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            return int(total - free)
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
        except OSError:
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def description(self) -> dict[str, Any]:
        """What runs here, for whoever operates it."""
        keypoints = {"keypoints": list(self.keypoint_names)} if self.keypoint_names else {}
        return keypoints | {
            "device": str(self.device),
            "precision": self.precision,
            "fusers": fusers_state(),
            "threads": torch.get_num_threads(),
            "categories": len(self.categories),
            "input": {"min_size": self.min_size, "max_size": self.max_size},
            "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        }

    def warm_up(self, batch_size: int = 1, *, every: bool | None = None) -> None:
        """Runs the network as requests will, so that the first of them is not the slow one: with and without objects,
        masks or none.

        Args:
            batch_size: the server's.
            every: on three canvases too, and with each batch size; None: on a GPU. On a CPU that would take longer than
                all requests that it spares.
        """
        random = np.random.default_rng(0)
        side = self.min_size
        square = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        objects = Wishes(score_threshold=0.0, max_detections=self.defaults.max_detections)
        nothing, bare = replace(objects, score_threshold=1.0), replace(objects, mask_format="none")
        for _ in range(WARM_UP_RUNS):
            self.predict([square], [objects])
        for wishes in (nothing, bare):
            self.predict([square], [wishes])
        if not (self.device.type != "cpu" if every is None else every):
            return
        wide = random.integers(0, 256, (side, min(side * 4 // 3, self.max_size), 3), dtype=np.uint8)
        for image in (square, wide, np.ascontiguousarray(wide.transpose(1, 0, 2))):
            for count in range(1, batch_size + 1):
                for mixed in ([objects], [nothing, objects, bare]):
                    self.predict([image] * count, [mixed[k % len(mixed)] for k in range(count)])


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
