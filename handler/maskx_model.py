"""maskx.pt in memory: decoded images and wishes in, detections out (border 4).

Knows nothing of the server and nothing of the project that made the file: torch and torchvision run it, and the
file's own metadata.json says what its labels mean.
"""

from __future__ import annotations

import json
import logging
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
from maskx_copies import Pixels, copies_for
from maskx_cores import usable_cores
from maskx_engine import PACKED, choose_precision, fusers, fusers_off, keep_freed_memory, ready_to_run
from maskx_faults import is_out_of_memory
from maskx_packed import unpack
from maskx_request import MAX_DETECTIONS, Wishes

logger = logging.getLogger(__name__)

METADATA_NAME = "metadata.json"
FORMAT_VERSION = 1


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
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
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
        self._copies = copies_for(device)

    @torch.inference_mode()
    def predict(
        self,
        images: Sequence[Pixels],
        wishes: Sequence[Wishes],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Detections]:
        """Detections of each image, in order, in pixels of the original; the images may differ in size.

        Args:
            images: uint8 [h, w, 3], RGB, upright, perhaps scaled down by the decoder: arrays, or tensors of the device.
            wishes: one for each image.
            sizes: height and width of each upright original; None where no image was scaled down.
        """
        if not images:
            return []
        originals = [(image.shape[0], image.shape[1]) for image in images] if sizes is None else list(sizes)
        arguments = (
            [pixels.permute(2, 0, 1) for pixels in self._copies.inwards(images)],
            torch.tensor(originals, dtype=torch.int64),
            torch.tensor([wish.score_threshold for wish in wishes], dtype=torch.float32),
            torch.tensor([wish.max_detections for wish in wishes], dtype=torch.int64),
            self._class_mask(wishes),
            torch.tensor([wish.mask_format != "none" for wish in wishes]),
        )
        if hasattr(self._module, PACKED):
            words, table = self._module.packed(*arguments)
            return unpack(self._copies.outwards(words), table, len(self.keypoint_names))
        answers: list[dict[str, Tensor]] = self._module(*arguments)
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
            "fusers": fusers(),
            "threads": torch.get_num_threads(),
            "categories": len(self.categories),
            "input": {"min_size": self.min_size, "max_size": self.max_size},
            "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        }

    def bring(self, images: Sequence[Pixels]) -> None:
        """Brings images to the device as `predict` does, and returns when they are there."""
        with torch.inference_mode():
            self._copies.inwards(images)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def warm_up(self, batch_size: int = 1) -> int:
        """Runs the network as requests will, so that none of them is the slow one; returns how many runs it took.

        With objects, without any, and without masks. On a GPU, where libraries choose and load a kernel for every new
        shape, also upright, lying and square images, in every number from one to `batch_size` and with unequal wishes;
        on a CPU one image alone, for what is left there is short and start-up would be long. Larger batches than there
        is memory for are left out; requests are then answered in halves.
        """
        runs = first_runs(batch_size if self.device.type == "cuda" else 1, self.defaults.max_detections)
        for done, ((height, width), wishes) in enumerate(runs):
            image = drawn(
                round(height * self.min_size), min(round(width * self.min_size), round(1.25 * self.max_size))
            )
            try:
                self.predict([image] * len(wishes), wishes)
                continue
            except Exception as error:  # PyTorch has no narrower class for all that a network can raise
                if len(wishes) == 1 or not is_out_of_memory(error):
                    raise
            logger.warning("no memory to warm up with %d images at once, nor with more", len(wishes))
            self.free_memory()
            return done
        return len(runs)


Run = tuple[tuple[float, float], list[Wishes]]
"""Height and width of an image, as shares of the network's shorter side, and the wishes of a batch of such images."""

SHAPES = ((1.25, 1.25), (1.25, 1.67), (1.67, 1.25))
"""Square, lying and upright, a quarter larger than the network's input, so that they are resized too."""

MOST_TOGETHER = 16
"""The largest batch that a GPU is warmed up with."""


def first_runs(batch_size: int, max_detections: int) -> list[Run]:
    """What a network is warmed up with, for batches of up to `batch_size`."""
    objects = Wishes(score_threshold=0.0, max_detections=max_detections)
    nothing, no_masks = replace(objects, score_threshold=2.0), replace(objects, mask_format="none")
    runs: list[Run] = [(SHAPES[0], [wishes]) for wishes in (objects, nothing, no_masks)]
    if batch_size > 1:
        runs += [(shape, [objects]) for shape in SHAPES[1:]]
        for together in range(2, min(batch_size, MOST_TOGETHER) + 1):
            unequal = [(nothing, objects, no_masks)[number % 3] for number in range(together)]
            runs += [(shape, wishes) for shape in SHAPES for wishes in ([objects] * together, unequal)]
    return runs


def drawn(height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: noise with rectangles of several sizes, always the same."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    for share in (0.5, 0.3, 0.2, 0.1, 0.05):
        h, w = max(round(share * height), 1), max(round(share * width), 1)
        top, left = random.integers(0, height - h + 1), random.integers(0, width - w + 1)
        pixels[top : top + h, left : left + w] = random.integers(0, 256, 3, dtype=np.uint8)
    return pixels


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
