"""maskx.pt in memory: decoded images and parameters in, detections out; by one copy each way.

A GPU reads and writes only memory that the system does not move (pinned), and goes on computing meanwhile; asking for
such memory takes milliseconds, so it is kept from one batch to the next. On a CPU nothing is copied at all.

Knows nothing of the server and nothing of the project that made the file: torch and torchvision run it, and the
file's own metadata.json says what its labels mean.
"""

import importlib.metadata
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from maskx_answer import Detections
from maskx_compiled import SUFFIX, package_for
from maskx_engine import (
    PACKED,
    choose_precision,
    fusers,
    fusers_off,
    keep_freed_memory,
    load_operators,
    prepared,
    usable_cores,
)
from maskx_parameters import MAX_DETECTIONS, Category, Parameters
from maskx_stages import network_of

METADATA_NAME = "metadata.json"
FORMAT_VERSION = 1

MOST_KEPT = 1 << 28
"""Bytes of pinned memory that are kept for one direction: 43 images of 1080p. A larger batch, which a few photographs
of 64 megapixels are, passes through ordinary memory."""

Pixels = np.ndarray | Tensor
"""uint8 [h, w, 3], RGB: an array on the host, or a tensor that may lie on the device already."""


class ServedModel:
    """The network of one maskx.pt on one device, frozen.

    `categories` maps labels to what they stand for; `defaults` are the parameters of a request that names none;
    `precision` is what the network computes in; the network brings an image's shorter side to `min_size` pixels, its
    longer within `max_size`. `keypoint_names` are empty without keypoints; `keypoint_lines` join them by their numbers.
    `engine` says what computes: "asked", one of `maskx_compiled.ENGINES`; "used", torchscript or compiled; "reason",
    where a package was not taken; "package", of one that was.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device,
        *,
        precision: str = "auto",
        engine: str = "torchscript",
        package: Path | None = None,
    ) -> None:
        """Reads the file.

        Args:
            path: of the maskx.pt.
            device: to run on.
            precision: "auto", "float32", "bfloat16" or "float16" (`maskx_engine.choose_precision`).
            engine: one of `maskx_compiled.ENGINES`; a package that cannot be used is a warning.
            package: of the compiled parts; None for maskx.pt2 beside the maskx.pt.

        Raises:
            ValueError: the file is not a maskx.pt, its metadata is not understood, or the precision is not for it.
        """
        fusers_off()
        load_operators()
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
                mask_source=entry.get("mask_source"),
                keypoints=entry["label"] in keypoints.get("labels", ()),
            )
            for entry in metadata["categories"]
        }
        self.defaults = Parameters(
            score_threshold=float(metadata["defaults"]["score_threshold"]),
            max_detections=min(int(metadata["defaults"]["max_detections"]), MAX_DETECTIONS),
        )
        self.min_size = int(metadata["input"]["min_size"])
        self.max_size = int(metadata["input"]["max_size"])
        if device.type == "cpu":
            keep_freed_memory()
            if torch.get_num_threads() > usable_cores():
                torch.set_num_threads(usable_cores())
        compiled = package_for(
            package or path.with_suffix(SUFFIX),
            torchscript=path,
            device=device,
            precision=self.precision,
            wanted=engine,
        )
        self._module, self.engine = network_of(
            prepared(module, device, self.precision, reducible),
            compiled,
            precision=self.precision,
            labels=len(self.categories),
            mask_size=int(metadata.get("mask_size", 0)),
        )
        self.engine = {"asked": engine} | self.engine
        self._copies = copies_for(device)

    @torch.inference_mode()
    def predict(
        self,
        images: Sequence[Pixels],
        parameters: Sequence[Parameters],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Detections]:
        """Detections of each image, in order, in pixels of the original; the images may differ in size.

        Args:
            images: uint8 [h, w, 3], RGB, upright, perhaps scaled down by the decoder: arrays, or tensors of the device.
            parameters: one for each image.
            sizes: height and width of each upright original; None where no image was scaled down.
        """
        if not images:
            return []
        originals = [(image.shape[0], image.shape[1]) for image in images] if sizes is None else list(sizes)
        arguments = (
            [pixels.permute(2, 0, 1) for pixels in self._copies.inwards(images)],
            torch.tensor(originals, dtype=torch.int64),
            torch.tensor([one.score_threshold for one in parameters], dtype=torch.float32),
            torch.tensor([one.max_detections for one in parameters], dtype=torch.int64),
            self._class_mask(parameters),
            torch.tensor([one.mask_format != "none" for one in parameters]),
        )
        if hasattr(self._module, PACKED):
            words, table = self._module.packed(*arguments)
            return unpack(self._copies.outwards(words), table, len(self.keypoint_names))
        answers: list[dict[str, Tensor]] = self._module(*arguments)
        return [Detections(**{name: tensor.cpu().numpy() for name, tensor in one.items()}) for one in answers]

    def _class_mask(self, parameters: Sequence[Parameters]) -> Tensor:
        """bool [N, C+1]: the labels that each request asks for."""
        mask = torch.ones((len(parameters), len(self.categories) + 1), dtype=torch.bool)
        for row, one in zip(mask, parameters, strict=True):
            if one.labels is not None:
                row[:] = False
                row[list(one.labels)] = True
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
        """What runs here, for whoever operates it: `mask_sources` says of how many categories the masks were learned
        from what."""
        more: dict[str, Any] = {"keypoints": list(self.keypoint_names)} if self.keypoint_names else {}
        sources = Counter(one.mask_source for one in self.categories.values() if one.mask_source is not None)
        if sources:
            more["mask_sources"] = dict(sources)
        return more | {
            "device": str(self.device),
            "precision": self.precision,
            "engine": self.engine,
            "fusers": fusers(),
            "threads": torch.get_num_threads(),
            "categories": len(self.categories),
            "input": {"min_size": self.min_size, "max_size": self.max_size},
            "versions": {
                "torch": torch.__version__,
                "torchvision": importlib.metadata.version("torchvision"),
            },
        }

    def bring(self, images: Sequence[Pixels]) -> None:
        """Brings images to the device as `predict` does, and returns when they are there."""
        with torch.inference_mode():
            self._copies.inwards(images)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


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


def unpack(words: np.ndarray, table: Sequence[Sequence[int]], keypoints: int) -> list[Detections]:
    """The answers of a batch as the network packs them, one tensor to copy from a GPU -> the detections of each image.

    In order; an image without masks has no counts, and offsets of 0.

    Args:
        words: int32 [n]; boxes, scores and keypoints are views of it, so it must not be written to any more.
        table: a row for each image: [detections D, and the places in `words` where its boxes, scores, labels, offsets,
            counts and keypoints begin]. Boxes are 4 D floats, scores D floats, labels D integers, offsets D + 1
            integers (where the runs of each mask begin, counted from the place of counts, and where the last ends),
            counts integers, keypoints 3 K D floats. The places of offsets and counts are -1 for an image whose masks
            were not asked for, that of keypoints where the network has none.
        keypoints: K of a detection; 0 for a network without any.
    """
    floats = words.view(np.float32)
    answers = []
    for detections, boxes, scores, labels, at_offsets, at_counts, places in table:
        if at_offsets < 0:
            offsets, counts = np.zeros(detections + 1, np.int64), np.zeros(0, np.int64)
        else:
            offsets = words[at_offsets : at_offsets + detections + 1].astype(np.int64)
            counts = words[at_counts + offsets[0] : at_counts + offsets[-1]].astype(np.int64)
            offsets -= offsets[0]
        points = None
        if places >= 0:
            points = floats[places : places + 3 * keypoints * detections].reshape(detections, keypoints, 3)
        answers.append(
            Detections(
                boxes=floats[boxes : boxes + 4 * detections].reshape(detections, 4),
                scores=floats[scores : scores + detections],
                labels=words[labels : labels + detections].astype(np.int64),
                rle_counts=counts,
                rle_offsets=offsets,
                keypoints=points,
            )
        )
    return answers


class Copies(Protocol):
    """Brings images in and words out."""

    def inwards(self, images: Sequence[Pixels]) -> list[Tensor]:
        """The images in order, uint8 [h, w, 3], on the device."""

    def outwards(self, words: Tensor) -> np.ndarray:
        """The words of a device's tensor, int32 [n], on the host; of a GPU a copy that nothing writes over."""


def copies_for(device: torch.device) -> Copies:
    """The way for a device."""
    return InPlace() if device.type == "cpu" else KeptCopies(device)


class InPlace:
    """`Copies` for a CPU: the very pixels, the very words."""

    def inwards(self, images: Sequence[Pixels]) -> list[Tensor]:
        return [image if isinstance(image, Tensor) else torch.from_numpy(image) for image in images]

    def outwards(self, words: Tensor) -> np.ndarray:
        array: np.ndarray = words.numpy()
        return array


class KeptCopies:
    """`Copies` for a GPU: through pinned memory that is kept, one copy each way.

    Not for two threads at a time.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        allocate: Callable[[int], Tensor] | None = None,
        mark: Callable[[], Callable[[], None]] | None = None,
    ) -> None:
        """`allocate` gives so many bytes of pinned memory, uint8; `mark` marks where the device's work stands now, and
        gives what waits until the device has come to that mark. Both are CUDA's where they are None."""
        self._device = device
        self._mark = mark or (lambda: _mark_of(device))
        self._in, self._out = _Kept(allocate or _pinned), _Kept(allocate or _pinned)

    def inwards(self, images: Sequence[Pixels]) -> list[Tensor]:
        """See `Copies`. Tensors are left where they lie; the copy of the others is under way when this returns."""
        arrays = [image for image in images if isinstance(image, np.ndarray)]
        parts: list[Tensor] = []
        if arrays:
            on_host = self._in.memory(sum(array.nbytes for array in arrays))
            at = 0
            for array in arrays:
                on_host.numpy()[at : at + array.nbytes].reshape(array.shape)[...] = array
                at += array.nbytes
            on_device = torch.empty(len(on_host), dtype=torch.uint8, device=self._device)
            on_device.copy_(on_host, non_blocking=True)
            self._in.wait = self._mark()
            parts = list(on_device.split([array.nbytes for array in arrays]))
        shapes = iter([array.shape for array in arrays])
        copied = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        return [image if isinstance(image, Tensor) else next(copied) for image in images]

    def outwards(self, words: Tensor) -> np.ndarray:
        on_host = self._out.memory(4 * words.numel()).view(torch.int32)
        on_host.copy_(words, non_blocking=True)
        self._mark()()
        array: np.ndarray = on_host.numpy().copy()  # the next batch writes over what is kept
        return array


class _Kept:
    """Pinned memory that grows with the largest batch, up to MOST_KEPT, and is not written to before it was read."""

    def __init__(self, allocate: Callable[[int], Tensor]) -> None:
        self.wait: Callable[[], None] | None = None
        self._allocate = allocate
        self._memory: Tensor | None = None

    def memory(self, count: int) -> Tensor:
        """uint8 [count], free to be written to."""
        if self.wait is not None:
            self.wait()
            self.wait = None
        if count > MOST_KEPT:
            return torch.empty(count, dtype=torch.uint8)
        if self._memory is None or self._memory.numel() < count:
            self._memory = None  # before the larger one is asked for
            self._memory = self._allocate(1 << max(count - 1, 0).bit_length())
        return self._memory[:count]


def _pinned(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.uint8, pin_memory=True)


def _mark_of(device: torch.device) -> Callable[[], None]:
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize
