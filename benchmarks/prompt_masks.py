"""Masks of boxes by a segmenter: time by part beside the plain loop of one box at a time, and whether they are equal.

    python -m benchmarks.prompt_masks --segmenter sam --images photos --annotations val.json --max-images 96

The plain loop is what one writes first: ONNX Runtime as it comes, the encoder, then for each box the decoder with its
masks of the photograph's size, a threshold, a cut at the box, pycocotools. Both take turns, some images each, so that
what else the machine does falls on both. The segmenter's files must be of SAM's own form (docs/prompt_masks.md).
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from benchmarks.command import parser_of, progress
from benchmarks.machine import describe
from benchmarks.tables import table
from model.files import exit_status
from training.data.coco import read_picture
from training.prompt_masks.description import described
from training.prompt_masks.journal import opened
from training.prompt_masks.load import load_segmenter
from training.prompt_masks.objects import Picture, wanted_masks
from training.prompt_masks.onnx_session import package
from training.prompt_masks.run import Outcome, prompt_all, split_threads

PARTS = ("decode", "encode", "prompt", "masks")
TURN = 8
"""Images before the other is on."""


@dataclass
class Found:
    """Seconds by part and in all, and run lengths by the annotations' places."""

    parts: Outcome = field(default_factory=Outcome)
    clock: float = 0.0
    processor: float = 0.0
    """Seconds that the cores spent, whatever else they did meanwhile."""
    runs: dict[int, dict[str, Any] | None] = field(default_factory=dict)


class PlainLoop:
    """See the file."""

    def __init__(self, folder: Path) -> None:
        runtime, self._form = package("onnxruntime"), described(folder)[0]
        providers = ["CPUExecutionProvider"]
        self._encoder = runtime.InferenceSession(str(folder / self._form.encoder), providers=providers)
        self._decoder = runtime.InferenceSession(str(folder / self._form.decoder), providers=providers)

    def take(self, picture: Picture, path: Path, found: Found) -> None:
        """Masks of all boxes of a picture."""
        clock = [time.perf_counter()]
        image = read_picture(path, width=picture.width, height=picture.height)
        clock.append(time.perf_counter())
        side = self._form.image_side
        scale = side / max(image.shape[:2])
        size = [int(length * scale + 0.5) for length in image.shape[1::-1]]
        small = np.asarray(
            Image.fromarray(image).resize((size[0], size[1]), Image.Resampling.BILINEAR), np.float32
        )
        canvas = np.zeros((side, side, 3), np.float32)
        canvas[: size[1], : size[0]] = (small - self._form.mean) / self._form.std
        seen = canvas.transpose(2, 0, 1)[None]
        embedding = self._encoder.run(None, {self._encoder.get_inputs()[0].name: seen})[0]
        clock.append(time.perf_counter())
        found.parts.spend({"decode": clock[1] - clock[0], "encode": clock[2] - clock[1]})
        for place, box in zip(picture.objects, picture.boxes, strict=True):
            begun = time.perf_counter()
            corners = box.reshape(1, 2, 2) * np.array([size[0] / image.shape[1], size[1] / image.shape[0]])
            inputs = {
                "image_embeddings": embedding,
                "point_coords": corners.astype(np.float32),
                "point_labels": np.array([[2, 3]], np.float32),
                "mask_input": np.zeros((1, 1, side // 4, side // 4), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
                "orig_im_size": np.array(image.shape[:2], np.float32),
            }
            masks = self._decoder.run(["masks"], inputs)[0]
            prompted = time.perf_counter()
            mask = masks[0, 0] >= 0
            x0, y0, x1, y1 = (int(v) for v in (*np.floor(box[:2]), *np.ceil(box[2:])))
            inside = np.zeros_like(mask)
            inside[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
            found.runs[place] = mask_utils.encode(np.asfortranarray(inside.astype(np.uint8)))
            found.parts.spend({"prompt": prompted - begun, "masks": time.perf_counter() - prompted})


def enlarged(pictures: Sequence[Picture], images: Path, times: int, folder: Path) -> list[Picture]:
    """The pictures with `times` their sides, as JPEGs in a folder."""
    made = []
    for picture in pictures:
        size = picture.width * times, picture.height * times
        name = f"{picture.row}.jpg"
        with Image.open(images / picture.name) as image:
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(folder / name, quality=90)
        boxes = picture.boxes * times
        made.append(replace(picture, name=name, width=size[0], height=size[1], boxes=boxes))
    return made


@contextmanager
def timed(found: Found) -> Iterator[None]:
    """Adds what the block takes."""
    clock, processor = time.perf_counter(), time.process_time()
    yield
    found.clock += time.perf_counter() - clock
    found.processor += time.process_time() - processor


def compare(
    segmenter: Path, pictures: Sequence[Picture], images: Path, *, seconds: float
) -> tuple[Found, Found, int]:
    """The plain loop's and this project's, over the same pictures by turns; over how many.

    No turn begins after so many seconds.
    """
    at_once, threads = split_threads(torch.get_num_threads())
    network = load_segmenter(segmenter, device="cpu", threads=threads)
    loop, plain, ours = PlainLoop(segmenter), Found(), Found()
    done = 0
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "journal", {}) as journal:
        while done < len(pictures) and plain.clock + ours.clock < seconds:
            some = pictures[done : done + TURN]
            with timed(plain):
                for picture in some:
                    loop.take(picture, images / picture.name, plain)
            with timed(ours):
                outcome = prompt_all(network, some, images, journal, at_once=at_once)
            ours.parts.spend(outcome.seconds)
            done += len(some)
            progress("prompt_masks", f"{done} images: plain {plain.clock:.1f} s, ours {ours.clock:.1f} s")
        ours.runs = {place: mask.runs for some in journal.done.values() for place, mask in some.items()}
    return plain, ours, done


def equality(plain: Found, ours: Found) -> tuple[float, float]:
    """Mean and least IoU of the masks of the two."""
    overlaps = []
    for place, one in plain.runs.items():
        other = ours.runs[place]
        if other is None:
            overlaps.append(float(mask_utils.area(one) == 0))
        else:
            overlaps.append(
                float(mask_utils.iou([one], [{**other, "counts": other["counts"].encode()}], [0])[0, 0])
            )
    return float(np.mean(overlaps)), min(overlaps)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    made = parser_of("benchmarks.prompt_masks", __doc__)
    add = made.add_argument
    add("--segmenter", type=Path, required=True, metavar="FOLDER")
    add("--images", type=Path, required=True, metavar="FOLDER")
    add(
        "--annotations",
        type=Path,
        required=True,
        metavar="BOXES.JSON",
        help="all of its objects are prompted",
    )
    add("--max-images", type=int, default=96, help="default: %(default)s")
    add(
        "--enlarge",
        type=int,
        default=1,
        help="make photographs of so many times the sides (default: %(default)s)",
    )
    add(
        "--seconds", type=float, default=3600, help="report what is done after so many (default: %(default)s)"
    )
    options = made.parse_args(arguments)
    with exit_status() as status, tempfile.TemporaryDirectory() as folder:
        wanted = wanted_masks(options.annotations, options.images, every=True)
        pictures, images = wanted.pictures[: options.max_images], options.images
        if options.enlarge > 1:
            pictures = tuple(enlarged(pictures, images, options.enlarge, Path(folder)))
            images = Path(folder)
        plain, ours, done = compare(options.segmenter, pictures, images, seconds=options.seconds)
        pictures = pictures[:done]
        mean, least = equality(plain, ours)
        machine = describe(torch.device("cpu"))
        boxes = sum(len(picture.boxes) for picture in pictures)
        print(
            f"\n{len(pictures)} images of {pictures[0].width} x {pictures[0].height} (the first), {boxes} boxes; "
            f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, load "
            f"{machine['load_before']}, {machine['date']}\n"
        )
        rows = [
            [
                part,
                f"{plain.parts.seconds[part] / len(pictures):.3f}",
                f"{ours.parts.seconds[part] / len(pictures):.3f}",
            ]
            for part in PARTS
        ]
        rows.append(["by the clock", *(f"{one.clock / len(pictures):.3f}" for one in (plain, ours))])
        rows.append(["of the processor", *(f"{one.processor / len(pictures):.3f}" for one in (plain, ours))])
        print(table(["seconds an image", "plain loop", "training.prompt_masks"], rows))
        print(
            f"{plain.clock / ours.clock:.2f} times as fast; IoU of both: mean {mean:.4f}, least {least:.3f}"
        )
    return status.code


if __name__ == "__main__":
    sys.exit(main())
