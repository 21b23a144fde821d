"""What a segmenter made of an image, and of each box of it, kept in files: no seed, direction or row asks it twice.

The encoder's maps and the masks of boxes alone follow from the picture and the segmenter. Masks that start from a prior
one follow from a mask branch as well and are not kept here (`training.join.sources` keeps them, in the run).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from model.files import whole
from training.prompt_masks.segmenter import Embedding, Frame, Prompted, Segmenter


@dataclass(frozen=True, kw_only=True)
class KeptEmbedding(Embedding):
    """An embedding with the folder of its image."""

    folder: Path


class KeptSegmenter:
    """A segmenter whose answers are read where they were given before; see `Segmenter`.

    An image's folder is named by a checksum of its pixels, in one named by a checksum of the segmenter's name, which
    has that of its files. Several processes may use it: each file is whole or not there, and whoever makes it makes
    the same.

    Args:
        segmenter: asked for what is not kept; its features must be arrays, or nothing is.
        folder: of all segmenters. SAM's form takes 4 MB an image and 0.26 MB a box.
    """

    def __init__(self, segmenter: Segmenter, folder: Path) -> None:
        self._segmenter = segmenter
        self.name = segmenter.name
        self._folder = folder / _digest(segmenter.name.encode())

    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        """See `Segmenter`; ValueError where a file is damaged."""
        folder = self._folder / _digest(repr(image.shape).encode() + image.tobytes())
        path = folder / "embedding.npz"
        if (kept := _read(path)) is not None:
            frame = Frame(**dict(zip(_FRAME, map(int, kept.pop("frame")), strict=True)))
            return KeptEmbedding(features=kept, frame=frame, folder=folder)
        made = self._segmenter.embed(image)
        if not all(isinstance(one, np.ndarray) for one in made.features.values()):
            return made
        _write(path, {**made.features, "frame": np.array(list(asdict(made.frame).values()))})
        return KeptEmbedding(features=made.features, frame=made.frame, folder=folder)

    def masks(
        self, embedding: Embedding, boxes: NDArray[np.float32], prior: NDArray[np.float32] | None = None
    ) -> Prompted:
        """See `Segmenter`; ValueError where a file is damaged."""
        if prior is not None or not len(boxes) or not isinstance(embedding, KeptEmbedding):
            return self._segmenter.masks(embedding, boxes, prior)
        paths = [embedding.folder / f"{_digest(box.tobytes())}.npz" for box in boxes]
        found = [_read(path) for path in paths]
        missing = [row for row, kept in enumerate(found) if kept is None]
        if missing:
            made = self._segmenter.masks(embedding, boxes[missing])
            for row, logits, quality in zip(missing, made.logits, made.quality, strict=True):
                found[row] = {"logits": logits, "quality": quality}
                _write(paths[row], found[row])
        known = [kept for kept in found if kept is not None]
        return Prompted(
            np.stack([kept["logits"] for kept in known]), np.stack([kept["quality"] for kept in known])
        )


_FRAME = tuple(Frame.__dataclass_fields__)


def _digest(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()[:20]


def _read(path: Path) -> dict[str, NDArray[Any]] | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file) as kept:
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it to have it made anew") from error


def _write(path: Path, arrays: Mapping[str, Any] | None) -> None:
    with whole(path) as file:
        np.savez(file, **dict(arrays or {}))
