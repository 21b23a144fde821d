"""Masks for the boxes of a file, image by image: several images at once, each by one thread, as far as there are cores.

One image after the other by several threads each is slower: decoding, resizing and run lengths have one thread, and
those of a network wait for each other. What is computed does not depend on how many images are under way.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.data.coco import read_picture
from training.data.image_files import MOST_BROKEN, UnreadableImage, too_many
from training.progress import progress
from training.prompt_masks.journal import Journal
from training.prompt_masks.objects import Mask, Picture
from training.prompt_masks.pixels import area_of, pixel_masks
from training.prompt_masks.segmenter import Segmenter

MOST_AT_ONCE = 4
"""Images under way; each needs the memory of the encoder's maps, for ViT-H several GB."""
DIGITS = 4
"""Of a quality in the output."""


@dataclass
class Outcome:
    """What came of a run.

    broken: rows of images that could not be read, with the reason. seconds: of each part, over all threads.
    """

    broken: dict[int, str] = field(default_factory=dict)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def spend(self, seconds: Mapping[str, float]) -> None:
        """Add seconds by part."""
        for part, more in seconds.items():
            self.seconds[part] += more


def split_threads(threads: int) -> tuple[int, int]:
    """Images at once, and threads for each, of so many threads."""
    at_once = min(threads, MOST_AT_ONCE)
    return at_once, threads // at_once


def prompt_all(
    segmenter: Segmenter, pictures: Sequence[Picture], images_dir: Path, journal: Journal, *, at_once: int
) -> Outcome:
    """Put the masks of all pictures that the journal does not hold into it.

    Raises:
        ValueError: the network cannot be computed, or too many images cannot be read
            (`training.data.image_files.too_many`); what is done stays in the journal.
    """
    outcome = Outcome()
    left = [picture for picture in pictures if picture.row not in journal.done]
    with progress(range(len(pictures)), "masks", done=len(pictures) - len(left)) as shown:
        for picture, made in _in_parallel(segmenter, left, images_dir, at_once):
            if isinstance(made, UnreadableImage):
                outcome.broken[picture.row] = str(made)
                shown.say(f"warning: {made}; its objects get no masks")
                if too_many(len(outcome.broken), of=len(pictures)):
                    raise ValueError(
                        f"{len(outcome.broken)} images could not be read, {MOST_BROKEN} or more and more than one in a "
                        f"hundred; the last: {made}. Mend them and start again: what is done is kept"
                    )
            else:
                masks, seconds = made
                journal.add(picture.row, masks)
                outcome.spend(seconds)
            shown.advance()
    return outcome


Made = tuple[dict[int, Mask], dict[str, float]] | UnreadableImage
"""Masks by the places of their objects and seconds by part, or why there are none."""


def _in_parallel(
    segmenter: Segmenter, pictures: Sequence[Picture], images_dir: Path, at_once: int
) -> Iterator[tuple[Picture, Made]]:
    """Every picture with what was made of it, as they are done."""
    coming = iter(pictures)
    under_way: dict[Future[Made], Picture] = {}
    pool = ThreadPoolExecutor(at_once)
    try:
        while True:
            while len(under_way) < at_once and (picture := next(coming, None)) is not None:
                under_way[pool.submit(_made, segmenter, picture, images_dir)] = picture
            if not under_way:
                return
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                yield under_way.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _made(segmenter: Segmenter, picture: Picture, images_dir: Path) -> Made:
    clock = [time.perf_counter()]
    try:
        pixels = read_picture(images_dir / picture.name, width=picture.width, height=picture.height)
    except UnreadableImage as error:
        return error
    clock.append(time.perf_counter())
    embedding = segmenter.embed(pixels)
    clock.append(time.perf_counter())
    prompted = segmenter.masks(embedding, picture.boxes)
    clock.append(time.perf_counter())
    runs = pixel_masks(prompted, embedding, picture.boxes)
    masks = {
        place: Mask(one if area_of(one) else None, round(min(max(float(quality), 0.0), 1.0), DIGITS))
        for place, one, quality in zip(picture.objects, runs, np.nan_to_num(prompted.quality), strict=True)
    }
    clock.append(time.perf_counter())
    parts = ("decode", "encode", "prompt", "masks")
    return masks, {part: after - before for part, before, after in zip(parts, clock, clock[1:], strict=False)}
