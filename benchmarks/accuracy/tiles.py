"""Objects that the borders of tiles cut: found once, and as well as without borders?

    python -m benchmarks.accuracy.tiles [--model build/maskx.pt] [--images build/shapes/val]

Images are laid side by side to mosaics, whose tiles cut the objects anywhere. Beside it stand the same images one by
one, which no border cuts, and the tiles' detections as they come, not joined.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils

from benchmarks import ROOT
from benchmarks.accuracy.__main__ import class_table
from benchmarks.command import parser_of, write_result
from benchmarks.machine import describe
from benchmarks.tables import percent, table
from maskx_answer import Detections
from maskx_image import decode
from maskx_model import ServedModel
from maskx_parameters import Parameters, Tiling
from maskx_tiles import Tile, joined, tiles_of
from model.classes import ClassTable
from model.files import exit_status
from training.evaluate.precision import masks_from_counts
from training.evaluate.truth import GroundTruth, load_ground_truth

MATCHED = 0.5
"""IoU of masks of one category from which a detection is of a true object."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """How true objects were found in one way."""

    way: str
    objects: int
    recall: float
    """Share of the true objects that a detection matches."""
    duplicates: int
    """Detections of a true object that a better one matches already."""
    others: int
    """Detections that match no true object."""
    iou: float
    """Mean IoU of the found objects' masks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parser().parse_args(arguments)
    with exit_status() as status:
        if not options.model.is_file():
            raise ValueError(f"there is no {options.model}; export one first (make archive)")
        model = ServedModel(options.model, torch.device("cpu"), precision="float32")
        classes = class_table(model)
        truth = load_ground_truth(options.annotations, classes, options.images)
        tiling = Tiling(options.tile, options.overlap)
        wishes = Parameters(score_threshold=options.score_threshold, max_detections=1000)
        found = measured(model, classes, truth, options.images, tiling, wishes, across=options.across)
        text = report(found, options, model)
        print(text)
        machine = describe(torch.device("cpu"))
        path = options.out / f"tiles-{options.name}-{machine['date'][:10]}.md"
        write_result(path, text, {"machine": machine, "results": [asdict(one) for one in found]})
        print(f"{path} and its .json written")
    return status.code


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = parser_of("benchmarks.accuracy.tiles", __doc__)
    add = made.add_argument
    build, shapes = ROOT / "build", ROOT / "build" / "shapes"
    add("--model", type=Path, default=build / "maskx.pt", help="(default: build/maskx.pt)")
    add("--images", type=Path, default=shapes / "val", help="all of one size (default: the drawn ones)")
    add("--annotations", type=Path, default=shapes / "val.json", help="a COCO file of them")
    add("--across", type=int, default=6, help="images along a side of a mosaic (default: %(default)s)")
    add("--tile", type=int, default=128, help="side of a tile in pixels (default: %(default)s)")
    add("--overlap", type=int, default=64, help="of two tiles (default: %(default)s)")
    add("--score-threshold", type=float, default=0.5, help="(default: %(default)s)")
    add("--name", default="shapes", help="of the data, for the result's name (default: %(default)s)")
    return made


def measured(
    model: ServedModel,
    classes: ClassTable,
    truth: GroundTruth,
    images: Path,
    tiling: Tiling,
    wishes: Parameters,
    *,
    across: int,
) -> list[Found]:
    """The three ways on all whole mosaics that the images make.

    Raises ValueError: fewer images than a mosaic takes, or images of several sizes.
    """
    count, sizes = across * across, set(truth.sizes.values())
    if len(sizes) != 1 or len(truth.image_ids) < count:
        raise ValueError(
            f"{len(truth.image_ids)} images of sizes {sorted(sizes)[:3]}; {count} of one size are wanted"
        )
    ((height, width),) = sizes
    tallies = {way: Tally() for way in ("one by one", "tiles, not joined", "tiles, joined")}
    for start in range(0, len(truth.image_ids) - count + 1, count):
        ids = truth.image_ids[start : start + count]
        places = [
            Tile(r * height, c * width, (r + 1) * height, (c + 1) * width)
            for r, c in np.ndindex(across, across)
        ]
        mosaic = np.zeros((across * height, across * width, 3), np.uint8)
        for image_id, place in zip(ids, places, strict=True):
            mosaic[place.top : place.bottom, place.left : place.right] = decode(
                (images / truth.file_names[image_id]).read_bytes()
            )
        known = [
            known_objects(truth, classes, image_id, place, mosaic.shape[:2])
            for image_id, place in zip(ids, places, strict=True)
        ]
        objects = [one for some in known for one in some]
        tiles = tiles_of(*mosaic.shape[:2], tiling, most=10_000)
        alone, cut = seen(model, mosaic, places, wishes), seen(model, mosaic, tiles, wishes)
        tallies["one by one"].add(objects, apart(alone, places, mosaic.shape[:2]))
        tallies["tiles, not joined"].add(objects, apart(cut, tiles, mosaic.shape[:2]))
        whole = joined(cut, tiles, height=mosaic.shape[0], width=mosaic.shape[1], most=wishes.max_detections)
        tallies["tiles, joined"].add(objects, masks_of(whole, mosaic.shape[:2]))
    return [tally.found(way) for way, tally in tallies.items()]


Mask = tuple[int, dict[str, Any]]
"""A label and a mask as pycocotools has it."""


def known_objects(
    truth: GroundTruth, classes: ClassTable, image_id: int, place: Tile, size: tuple[int, ...]
) -> list[Mask]:
    """The true objects of one image, in the mosaic."""
    found = []
    for one in truth.objects[image_id]:
        if one.mask is not None and not one.crowd:
            pixels = np.zeros(size, np.uint8, order="F")
            pixels[place.top : place.bottom, place.left : place.right] = mask_utils.decode(one.mask)
            found.append((classes.label_of_id(one.category_id), mask_utils.encode(pixels)))
    return found


def seen(
    model: ServedModel, mosaic: np.ndarray, tiles: Sequence[Tile], wishes: Parameters
) -> list[Detections]:
    """What the network says of each tile."""
    answers = []
    for start in range(0, len(tiles), 8):
        some = tiles[start : start + 8]
        parts = [np.ascontiguousarray(mosaic[t.top : t.bottom, t.left : t.right]) for t in some]
        answers += model.predict(parts, [wishes] * len(some), [part.shape[:2] for part in parts])
    return answers


def apart(found: Sequence[Detections], tiles: Sequence[Tile], size: tuple[int, ...]) -> list[Mask]:
    """All detections of tiles in the mosaic, best first, none of them joined."""
    placed = []
    for one, tile in zip(found, tiles, strict=True):
        for score, (label, mask) in zip(
            one.scores.tolist(), masks_of(one, (tile.bottom - tile.top, tile.right - tile.left)), strict=True
        ):
            pixels = np.zeros(size, np.uint8, order="F")
            pixels[tile.top : tile.bottom, tile.left : tile.right] = mask_utils.decode(mask)
            placed.append((score, label, mask_utils.encode(pixels)))
    return [(label, mask) for _, label, mask in sorted(placed, key=lambda one: -one[0])]


def masks_of(found: Detections, size: tuple[int, ...]) -> list[Mask]:
    """The detections of one image, best first."""
    counts, offsets = torch.from_numpy(found.rle_counts), torch.from_numpy(found.rle_offsets)
    return list(zip(found.labels.tolist(), masks_from_counts(counts, offsets, size[0], size[1]), strict=True))


class Tally:
    """What was found, mosaic by mosaic."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.ious: list[float] = []

    def add(self, objects: Sequence[Mask], detections: Sequence[Mask]) -> None:
        """Matches detections, best first, with the objects of their category that they agree with most."""
        taken: set[int] = set()
        self.counts["objects"] += len(objects)
        ious = mask_utils.iou([one for _, one in detections], [one for _, one in objects], [0] * len(objects))
        for d, (label, _) in enumerate(detections):
            of_label = [o for o, (its, _) in enumerate(objects) if its == label and ious[d][o] >= MATCHED]
            best = max(of_label, key=lambda o: float(ious[d][o]), default=None)
            if best is None:
                self.counts["others"] += 1
            elif best in taken:
                self.counts["duplicates"] += 1
            else:
                taken.add(best)
                self.ious.append(float(ious[d][best]))
        self.counts["found"] += len(taken)

    def found(self, way: str) -> Found:
        """The figures."""
        objects = self.counts["objects"]
        return Found(
            way=way,
            objects=objects,
            recall=self.counts["found"] / max(objects, 1),
            duplicates=self.counts["duplicates"],
            others=self.counts["others"],
            iou=float(np.mean(self.ious)) if self.ious else 0.0,
        )


def report(found: Sequence[Found], options: argparse.Namespace, model: ServedModel) -> str:
    """The table, and what it is of."""
    side = options.across
    head = ["way", "true objects", "found", "found twice", "of no object", "mask IoU"]
    rows = [
        [
            one.way,
            str(one.objects),
            percent(one.recall),
            str(one.duplicates),
            str(one.others),
            percent(one.iou),
        ]
        for one in found
    ]
    return (
        f"Mosaics of {side} x {side} images of {options.annotations.name}, tiles of {options.tile} pixels that overlap "
        f"by {options.overlap}, score above {options.score_threshold:g}, {model.precision}; found: a mask of its "
        f"category with an IoU of {MATCHED:g} or more.\n\n{table(head, rows)}"
    )


if __name__ == "__main__":
    sys.exit(main())
