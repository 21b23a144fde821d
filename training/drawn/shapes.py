"""The drawn data set as COCO records. What is drawn, and why, is told in `training/drawn/shapes_drawing.py`.

Beside what every drawn set has (`training/drawn/write.py`) the folder gets `mask_classes.txt`, the names of set A, one
per line. Validation segmentations are exact compressed run lengths. Training images also carry the other things COCO
allows, so that the reader meets them: uncompressed run lengths, polygons (exact ones: a rectangle per run of rows) and
crowd regions.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from training.drawn import shapes_drawing, shapes_forms
from training.drawn.shapes_drawing import DrawnObject, box_iou, draw
from training.drawn.shapes_forms import CLASSES
from training.drawn.write import (
    SPLITS,
    Bools,
    Drawn,
    IntBox,
    Kind,
    SetConfig,
    Written,
    annotation,
    mask_box,
    write_set,
)

UNCOMPRESSED_EVERY, POLYGON_EVERY = 10, 20  # training images: one in so many


@dataclass(frozen=True, kw_only=True)
class ShapesConfig(SetConfig):
    """See `SetConfig`."""

    train: int = 4000


class _Counts(NamedTuple):
    """What the summary needs of one image.

    `fills` has, per object that is no crowd, whether it is in set A, in a pair, and mask area : box area;
    `pair_ious` has the IoU of the two boxes of every pair.
    """

    fills: list[tuple[bool, bool, float]]
    pair_ious: list[float]


def rectangles(mask: Bools) -> list[list[int]]:
    """The mask as COCO polygons that give it back exactly: rectangles, equal runs of rows joined."""
    polygons: list[list[int]] = []
    open_runs: dict[tuple[int, int], int] = {}
    for row in range(mask.shape[0] + 1):
        runs: set[tuple[int, int]] = set()
        if row < mask.shape[0] and mask[row].any():
            edges = np.flatnonzero(np.diff(np.concatenate(([0], mask[row].astype(np.int8), [0]))))
            runs = {(int(a), int(b)) for a, b in edges.reshape(-1, 2)}
        for run in sorted(set(open_runs) - runs):
            (left, right), top = run, open_runs.pop(run)
            polygons.append([left, top, right, top, right, row, left, row])
        for run in runs:
            open_runs.setdefault(run, row)
    return polygons


def run_lengths(mask: Bools) -> list[int]:
    """COCO's uncompressed counts: column by column, zeros first."""
    flat = np.concatenate(([0], mask.ravel(order="F").astype(np.int8), [0]))
    ends = np.append(np.flatnonzero(np.diff(flat)), mask.size)
    counts = np.diff(ends, prepend=0).tolist()
    if counts[-1] == 0:
        counts.pop()
    return [int(count) for count in counts]


def _segmentation(drawn: DrawnObject, split: str, index: int) -> dict[str, Any] | list[list[int]] | None:
    """The form that an object's mask has in the file; None: compressed run lengths."""
    if split == "train":
        if drawn.crowd or index % UNCOMPRESSED_EVERY == 3:
            return {"size": list(drawn.mask.shape), "counts": run_lengths(drawn.mask)}
        if index % POLYGON_EVERY == 7:
            return rectangles(drawn.mask)
    return None


def _draw(config: SetConfig, split: str, index: int) -> Drawn:
    drawing = draw(
        seed=config.seed, split=SPLITS.index(split), index=index, side=config.size, crowds=split == "train"
    )
    annotations: list[dict[str, Any]] = []
    fills: list[tuple[bool, bool, float]] = []
    pairs: dict[int, list[IntBox]] = {}
    for drawn in drawing.objects:
        record = annotation(
            drawn.mask, drawn.category.id, crowd=drawn.crowd, segmentation=_segmentation(drawn, split, index)
        )
        annotations.append(record)
        if not drawn.crowd:
            fill = record["area"] / (record["bbox"][2] * record["bbox"][3])
            fills.append((drawn.category.has_mask, drawn.pair is not None, fill))
        if drawn.pair is not None:
            pairs.setdefault(drawn.pair, []).append(mask_box(drawn.mask))
    counts = _Counts(fills, [box_iou(one, other) for one, other in pairs.values()])
    return Drawn(drawing.pixels, annotations, counts)


def _document(config: SetConfig, split: str, images: list[Any], annotations: list[Any]) -> dict[str, Any]:
    return {
        "info": {"description": f"maskx drawn shapes, {split}, seed {config.seed}", "version": "1"},
        "licenses": [],
        "categories": [{"id": c.id, "name": c.name, "supercategory": c.form} for c in CLASSES],
        "images": images,
        "annotations": annotations,
    }


def summary(split: str, written: Sequence[Written]) -> str:
    """One paragraph: how many objects, how many in pairs, how far box and mask are apart."""
    fills = [fill for result in written for fill in result.about.fills]
    ious = [iou for result in written for iou in result.about.pair_ious]
    counts = Counter(a["category_id"] for result in written for a in result.annotations if not a["iscrowd"])
    per_class = [counts[c.id] for c in CLASSES]
    crowds = sum(a["iscrowd"] for result in written for a in result.annotations)
    fill_a = [fill for has_mask, _, fill in fills if has_mask]
    fill_b = [fill for has_mask, _, fill in fills if not has_mask]
    return (
        f"{split}: {len(written)} images, {sum(not r.annotations for r in written)} of them empty; "
        f"{len(fills)} objects, {sum(paired for _, paired, _ in fills) / max(len(fills), 1):.0%} in pairs, "
        f"{crowds} crowds; "
        f"{min(per_class)} to {max(per_class)} objects per class\n"
        f"  a filled box's mask IoU (mean box fill): set A {np.mean(fill_a or [0.0]):.3f}, "
        f"set B {np.mean(fill_b or [0.0]):.3f}; "
        f"box IoU within pairs {np.mean(ious or [0.0]):.2f} (mask IoU 0)"
    )


SHAPES = Kind(
    defaults=ShapesConfig(),
    draw=_draw,
    document=_document,
    sources=(__file__, shapes_drawing.__file__, shapes_forms.__file__),
    summary=summary,
    more_files={"mask_classes.txt": "".join(f"{c.name}\n" for c in CLASSES if c.has_mask)},
)
write_shapes = partial(write_set, SHAPES)
"""`write_set` of this kind."""
