"""Writes the drawn data set: PNG images and ordinary COCO files, read by the same code as any other data.

`python -m training.drawn.shapes --out build/shapes --train 4000 --val 200 --seed 0` gives `train/*.png`,
`val/*.png`, `train.json`, `val.json`, `mask_classes.txt` (the names of set A, one per line) and
`settings.json`. What is drawn, and why, is told in `training/drawn/shapes_drawing.py`. The folder is written
whole or not at all.

Validation segmentations are exact compressed run lengths. Training images also carry the other things COCO
allows, so that the reader meets them: uncompressed run lengths, polygons (exact ones: a rectangle per run
of rows) and crowd regions.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from training.drawn import shapes_drawing, shapes_forms
from training.drawn.shapes_drawing import DrawnObject, box_iou, draw, mask_box
from training.drawn.shapes_forms import CLASSES, Bools

SPLITS = ("train", "val")
MIN_SIDE, MAX_SIDE = 64, 2048
UNCOMPRESSED_EVERY, POLYGON_EVERY = 10, 20  # training images: one in so many
SETTINGS_FILE = "settings.json"


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """How many images of which side (pixels), from which seed. ValueError where a number is out of range."""

    train: int = 4000
    val: int = 200
    seed: int = 0
    size: int = 128

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; at least one image is needed: give 1 or more"
                )
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; give 0 or more")
        if not MIN_SIDE <= self.size <= MAX_SIDE:
            raise ValueError(f"size is {self.size}; the images' side must be {MIN_SIDE} to {MAX_SIDE} pixels")


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One image: `folder` takes the PNG, `split` is the position in SPLITS."""

    folder: str
    split: int
    index: int
    seed: int
    size: int


@dataclass(frozen=True, kw_only=True)
class _Written:
    """COCO's records of one image, without annotation ids, and what the summary needs.

    `fills` has, per object that is no crowd, whether it is in set A, in a pair, and mask area : box area;
    `pair_ious` has the IoU of the two boxes of every pair.
    """

    image: dict[str, Any]
    annotations: list[dict[str, Any]]
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


def _segmentation(drawn: DrawnObject, task: _Task) -> dict[str, Any] | list[list[int]]:
    height, width = drawn.mask.shape
    if SPLITS[task.split] == "train":
        if drawn.crowd or task.index % UNCOMPRESSED_EVERY == 3:
            return {"size": [height, width], "counts": run_lengths(drawn.mask)}
        if task.index % POLYGON_EVERY == 7:
            return rectangles(drawn.mask)
    encoded = coco_mask.encode(np.asfortranarray(drawn.mask.astype(np.uint8)))
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def _write_image(task: _Task) -> _Written:
    split = SPLITS[task.split]
    drawing = draw(
        seed=task.seed, split=task.split, index=task.index, side=task.size, crowds=split == "train"
    )
    name = f"{task.index:06d}.png"
    Image.fromarray(drawing.pixels).save(Path(task.folder) / name, compress_level=1)
    image_id = task.index + 1
    annotations: list[dict[str, Any]] = []
    fills: list[tuple[bool, bool, float]] = []
    pairs: dict[int, list[tuple[int, int, int, int]]] = {}
    for drawn in drawing.objects:
        box = mask_box(drawn.mask)
        left, top, right, bottom = box
        area = int(drawn.mask.sum())
        annotations.append(
            {
                "image_id": image_id,
                "category_id": drawn.category.id,
                "bbox": [left, top, right - left, bottom - top],
                "area": area,
                "iscrowd": int(drawn.crowd),
                "segmentation": _segmentation(drawn, task),
            }
        )
        if not drawn.crowd:
            fill = area / ((right - left) * (bottom - top))
            fills.append((drawn.category.has_mask, drawn.pair is not None, fill))
        if drawn.pair is not None:
            pairs.setdefault(drawn.pair, []).append(box)
    return _Written(
        image={"id": image_id, "file_name": name, "width": task.size, "height": task.size},
        annotations=annotations,
        fills=fills,
        pair_ious=[box_iou(one, other) for one, other in pairs.values()],
    )


def _with_progress(results: Iterable[_Written], total: int) -> Iterator[_Written]:
    """Pass the results on; one line with rate and time left on a terminal, else a line per tenth."""
    terminal = sys.stderr.isatty()
    start = shown = time.monotonic()
    for done, result in enumerate(results, start=1):
        yield result
        now = time.monotonic()
        tenth = done * 10 // total > (done - 1) * 10 // total
        if (now - shown > 0.2 or done == total) if terminal else tenth:
            rate = done / max(now - start, 1e-9)
            line = f"drawing {done}/{total}  {rate:.0f} images/s  {(total - done) / rate:.0f} s left"
            print(
                f"\r{line}   " if terminal else line,
                end="" if terminal else "\n",
                file=sys.stderr,
                flush=True,
            )
            shown = now
    if terminal:
        print(file=sys.stderr)


def _draw_all(tasks: list[_Task], workers: int) -> Iterator[_Written]:
    """Results in the order of the tasks."""
    if workers == 1:
        yield from map(_write_image, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_write_image, tasks, chunksize=16)


def _settings(config: ShapesConfig) -> dict[str, Any]:
    """What the folder's content follows from: the arguments and the drawing's own source."""
    sources = (Path(module) for module in (__file__, shapes_drawing.__file__, shapes_forms.__file__))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return {**asdict(config), "drawing": digest}


def _coco(split: str, config: ShapesConfig, written: list[_Written]) -> dict[str, Any]:
    annotations = [annotation for result in written for annotation in result.annotations]
    return {
        "info": {"description": f"maskx drawn shapes, {split}, seed {config.seed}", "version": "1"},
        "licenses": [],
        "categories": [{"id": c.id, "name": c.name, "supercategory": c.form} for c in CLASSES],
        "images": [result.image for result in written],
        "annotations": [
            {"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)
        ],
    }


def summary(split: str, written: list[_Written]) -> str:
    """One paragraph: how many objects, how many in pairs, how far box and mask are apart."""
    fills = [fill for result in written for fill in result.fills]
    ious = [iou for result in written for iou in result.pair_ious]
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


def write_shapes(out: Path, config: ShapesConfig, *, workers: int | None = None) -> bool:
    """Write the data set to `out`; False where it already lies there, drawn from the same settings.

    A data set that an earlier run drew from other settings is replaced. ValueError where `out` is anything
    else. `workers` processes draw; default: as many as this process may use processors. Their number
    changes no pixel.
    """
    settings = _settings(config)
    settings_file = out / SETTINGS_FILE
    if settings_file.is_file() and json.loads(settings_file.read_text()) == settings:
        return False
    if out.exists() and not settings_file.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} exists and is no drawn data set (it has no {SETTINGS_FILE}), so it is not replaced; "
            "give another --out or remove it"
        )
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.parent / f".{out.name}.unfinished-{os.getpid()}"
    replaced = out.parent / f".{out.name}.replaced-{os.getpid()}"
    try:
        tasks: list[_Task] = []
        for number, (split, count) in enumerate(zip(SPLITS, (config.train, config.val), strict=True)):
            folder = unfinished / split
            folder.mkdir(parents=True)
            tasks += [
                _Task(folder=str(folder), split=number, index=i, seed=config.seed, size=config.size)
                for i in range(count)
            ]
        written = list(_with_progress(_draw_all(tasks, workers), len(tasks)))
        for split, part in (("train", written[: config.train]), ("val", written[config.train :])):
            (unfinished / f"{split}.json").write_text(json.dumps(_coco(split, config, part)))
            print(summary(split, part))
        names = [c.name for c in CLASSES if c.has_mask]
        (unfinished / "mask_classes.txt").write_text("".join(f"{name}\n" for name in names))
        (unfinished / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n")
        if out.exists():
            out.rename(replaced)
        unfinished.rename(out)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 where the data set lies there in the end."""
    defaults = ShapesConfig()
    parser = argparse.ArgumentParser(
        prog="python -m training.drawn.shapes",
        description="Draw the default data set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("build/shapes"), help="folder to write")
    parser.add_argument("--train", type=int, default=defaults.train, help="training images")
    parser.add_argument("--val", type=int, default=defaults.val, help="validation images")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="same seed, same pixels")
    parser.add_argument("--size", type=int, default=defaults.size, help="side of an image")
    parser.add_argument("--workers", type=int, help="processes; None: one per processor")
    options = parser.parse_args(arguments)
    try:
        if options.workers is not None and options.workers < 1:
            raise ValueError(f"workers is {options.workers}; give 1 or more")
        config = ShapesConfig(train=options.train, val=options.val, seed=options.seed, size=options.size)
        drawn = write_shapes(options.out, config, workers=options.workers)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.out}: written"
        if drawn
        else f"{options.out}: already drawn from the same settings, nothing to do"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
