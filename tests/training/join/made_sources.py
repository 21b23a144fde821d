"""Objects whose truth is known, and sources whose masks are right for known classes: what a join should find out."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from training.join.features import Floats
from training.join.grids import SIDE, Maps
from training.join.objects import Objects, Placed
from training.join.sources import Said
from training.prompt_masks.segmenter import Embedding, Frame

IMAGE = 96
CELLS = (np.arange(SIDE) + 0.5) / SIDE - 0.5


def disc(radius: float) -> Maps:
    """A disc of this share of half the box's side, on a grid; beyond 1 it fills more of the corners."""
    x, y = np.meshgrid(CELLS, CELLS)
    return np.where(np.hypot(x, y) <= radius / 2, 230, 25).astype(np.uint8)


def true_radius(label: int) -> float:
    """Of the disc that an object of a class is: what its pixels are, its class decides."""
    return 0.45 + 0.4 * (label % 2)


def made_objects(classes: int, *, each: int, known: Callable[[int], bool], seed: int = 0) -> Objects:
    """`each` objects of every label 1..classes, one to an image; true masks where `known` says so of the label."""
    random = np.random.default_rng(seed)
    objects = []
    for number in range(classes * each):
        label = number % classes + 1
        side = int(random.integers(30, 60))
        x, y = (int(v) for v in random.integers(0, IMAGE - side, 2))
        rows, columns = np.mgrid[:IMAGE, :IMAGE] + 0.5
        far = np.hypot((columns - x) / side - 0.5, (rows - y) / side - 0.5)
        truth = mask_utils.encode(np.asfortranarray((far <= true_radius(label) / 2).astype(np.uint8)))
        box = (float(x), float(y), float(x + side), float(y + side))
        objects.append(Placed(number, number, label, box, dict(truth) if known(label) else None))
    return Objects(
        document={},
        names=[f"{number}.png" for number in range(len(objects))],
        sizes=[(IMAGE, IMAGE)] * len(objects),
        objects=tuple(objects),
    )


def made_source(
    objects: Objects,
    radius: Callable[[int], float],
    *,
    claims: float = 0.0,
    noise: float = 0.03,
    seed: int = 1,
) -> Said:
    """Of every object a disc of its class's `radius`, somewhat off."""
    random = np.random.default_rng(seed)
    labels = objects.labels.tolist()
    maps = [disc(radius(label) + float(random.normal(0, noise))) for label in labels]
    quality = np.clip(claims + random.normal(0, 0.01, len(labels)), 0, 1) if claims else np.zeros(len(labels))
    return Said(np.stack(maps), quality)


def no_likeness(classes: int) -> Floats:
    """[C + 1]: no class is like another."""
    return np.zeros(classes + 1)


def right_for(labels: Callable[[int], bool], wrong: float = 1.4) -> Callable[[int], float]:
    """The true radius for these labels, for others a wrong one."""
    return lambda label: true_radius(label) if labels(label) else wrong


def sources_of(objects: Objects) -> Mapping[str, Said]:
    """A segmenter that is right for odd labels and claims .95 of all, and a transfer that is middling for all."""
    count = len(objects.objects)
    return {
        "transfer": made_source(objects, lambda label: true_radius(label) * 1.12, noise=0.08, seed=2),
        "segmenter": made_source(objects, right_for(lambda label: label % 2 == 1), claims=0.95),
        "box": Said(np.full((count, SIDE, SIDE), 255, np.uint8), np.zeros(count)),
    }


def embedded(features: Any, side: int) -> Embedding:
    """What a made segmenter keeps of a square image, whose canvas is the image itself."""
    return Embedding(features={"made": features}, frame=Frame.of(side, side, side=side, fit="square"))
