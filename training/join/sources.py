"""The sources of a join and what each says of every object; kept image by image in parts, so that a killed run goes on.

Mask branches (`training.join.heads`), a segmenter prompted with the boxes, the same prompted with the transfer's mask
beside the box, and the filled box.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from model.files import remove_unfinished, whole
from training.data.coco import read_picture
from training.join.grids import Maps, filled, on_boxes, on_canvas
from training.join.objects import Objects, Placed
from training.progress import progress
from training.prompt_masks.segmenter import Segmenter

PART = 25
"""Images of a part: so many are lost at most when a run is killed."""
Answers = Mapping[str, tuple[Maps, NDArray[np.float32] | None]]
"""By source: grids of an image's objects, and the quality claimed for each, where it claims any."""


class Source(Protocol):
    """What gives masks of one or more names."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def identity(self) -> str:
        """Differs where its masks differ."""

    def of_image(
        self, pixels: NDArray[np.uint8], objects: Sequence[Placed], before: Mapping[str, Maps]
    ) -> Answers:
        """Its answers for the objects of one image; `before`: grids of the sources asked before, of this image."""


class Said(NamedTuple):
    """What a source says of all objects: grids, and the quality it claims, 0 for all where it claims none."""

    maps: Maps
    quality: NDArray[np.float64]


UNTAUGHT = ("segmenter", "box")
"""Sources that have learned nothing from masks of set A, and so lose nothing where a class is unlike those."""


class SegmenterMasks:
    """A segmenter prompted with each box, and, as "prior", with the box and the transfer's mask."""

    names = ("segmenter", "prior")

    def __init__(self, segmenter: Segmenter, *, after: str) -> None:
        self._segmenter = segmenter
        self.identity = f"{segmenter.name} {after}"

    def of_image(
        self, pixels: NDArray[np.uint8], objects: Sequence[Placed], before: Mapping[str, Maps]
    ) -> Answers:
        """See `Source`."""
        boxes = np.array([one.box for one in objects], np.float32)
        embedding = self._segmenter.embed(pixels)
        shares = embedding.frame.on_canvas(boxes) / embedding.frame.side
        alone = self._segmenter.masks(embedding, boxes)
        prior = on_canvas(before["transfer"], shares, alone.logits.shape[-1])
        guided = self._segmenter.masks(embedding, boxes, prior)
        return {
            name: (on_boxes(said.logits, shares), said.quality)
            for name, said in zip(self.names, (alone, guided), strict=True)
        }


def asked(
    sources: Sequence[Source], objects: Objects, images_dir: Path, folder: Path | None
) -> dict[str, Said]:
    """Ask all sources, in order, about all objects; parts that `folder` has already are not made again.

    Raises:
        ValueError: an image cannot be read, or a part is not a file of this program.
    """
    found: dict[str, Said] = {}
    for source in sources:
        found |= _asked_one(
            source, objects, images_dir, folder, {name: one.maps for name, one in found.items()}
        )
    count = len(objects.objects)
    found["box"] = Said(filled(count), np.zeros(count))
    return found


def _asked_one(
    source: Source, objects: Objects, images_dir: Path, folder: Path | None, before: Mapping[str, Maps]
) -> dict[str, Said]:
    images = objects.by_image()
    kept = None if folder is None else folder / f"{source.names[0]}-{_digest(source, objects)}"
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
    parts = []
    with progress(range(len(images)), f"masks of {' and '.join(source.names)}") as shown:
        for start in range(0, len(images), PART):
            some = images[start : start + PART]
            path = None if kept is None else kept / f"{start // PART:05d}.npz"
            part = _read_part(path, source.names)
            if part is None:
                part = _part(source, objects, some, images_dir, before)
                _write_part(path, part)
            parts.append(part)
            shown.advance(len(some))
    return {
        name: Said(
            np.concatenate([part[name] for part in parts]),
            np.concatenate([part[f"{name} quality"] for part in parts]).astype(np.float64),
        )
        for name in source.names
    }


def _part(
    source: Source,
    objects: Objects,
    images: Sequence[tuple[int, list[int]]],
    images_dir: Path,
    before: Mapping[str, Maps],
) -> dict[str, NDArray[Any]]:
    answers: dict[str, list[NDArray[Any]]] = {}
    for image, positions in images:
        height, width = objects.sizes[image]
        pixels = read_picture(images_dir / objects.names[image], width=width, height=height)
        mine = [objects.objects[position] for position in positions]
        of_image = {name: maps[positions] for name, maps in before.items()}
        for name, (maps, quality) in source.of_image(pixels, mine, of_image).items():
            answers.setdefault(name, []).append(maps)
            claimed = np.zeros(len(mine), np.float32) if quality is None else quality
            answers.setdefault(f"{name} quality", []).append(claimed)
    return {name: np.concatenate(values) for name, values in answers.items()}


def _read_part(path: Path | None, names: Sequence[str]) -> dict[str, NDArray[Any]] | None:
    if path is None or not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file) as part:
            return {key: part[key] for name in names for key in (name, f"{name} quality")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it to have it made anew") from error


def _write_part(path: Path | None, part: Mapping[str, NDArray[Any]]) -> None:
    if path is not None:
        remove_unfinished(path)
        with whole(path) as file:
            np.savez_compressed(file, **dict(part))  # type: ignore[arg-type]


def _digest(source: Source, objects: Objects) -> str:
    """Eight digits that differ where the source, or the objects it is asked about, differ."""
    about = [(objects.names[one.image], one.label, one.box, one.truth is None) for one in objects.objects]
    text = json.dumps([source.identity, source.names, objects.sizes, about])
    return hashlib.sha256(text.encode()).hexdigest()[:8]
