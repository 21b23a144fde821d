"""Predict all images of a folder or bucket: `python -m offline.predict --archive build/maskx.mar --images photos --out
build/offline`.

Writes COCO results with run lengths (`results.json`), the images they are of (`results.images.json`) and those that
could not be read (`errors.json`), to a folder or bucket. A run that was stopped or killed goes on where it was, by the
same command; images that have come since are added. With Ray (requirements/offline.txt) it runs on as many processes,
GPUs and machines as there are, without it in this process; the results are the same, byte for byte.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from offline.on_ray import has_ray, predict_on_ray
from offline.plan import PARTS, PLAN, Image, Plan, listed_images, part_name, planned
from offline.predictor import DeviceFailed, Model, Predictor, Wanted, check, read_model
from offline.results import Summary, join, kept_part
from offline.store import Store, read_address

SAY_EVERY = 10.0
"""Seconds between two lines on how far a run is."""


def predict_here(
    plan: Plan, todo: Sequence[int], *, images: Store, out: Store, model: Model, wanted: Wanted
) -> Iterator[int]:
    """Predict the parts `todo` of the plan in this process; the number of each as it is done and kept.

    The files of the next part are read while one is predicted.
    """
    predictor = Predictor(model, wanted)
    names = [[one.name for one in plan.parts[number]] for number in todo]
    with ThreadPoolExecutor(1) as ahead:
        coming = [ahead.submit(images.read_each, of) for of in names[:1]]
        for position, number in enumerate(todo):
            contents = coming.pop().result()
            coming += [ahead.submit(images.read_each, of) for of in names[position + 1 : position + 2]]
            out.write_json(part_name(number), predictor.predict(plan.parts[number], contents))
            yield number


def run(options: argparse.Namespace) -> Summary:
    """What the command line asks for.

    Raises:
        ValueError: a file, folder or option is not what it should be.
        DeviceFailed, RuntimeError: the run could not be finished; what was done is kept.
    """
    engine = options.engine if options.engine != "auto" else "ray" if has_ray() else "plain"
    if engine == "ray" and not has_ray():
        raise ValueError("--engine ray: Ray is not installed; pip install -r requirements/offline.txt")
    images, out = Store(options.images), Store(options.out)
    data = read_address(options.archive)
    model = read_model(data, options.archive)
    wanted = Wanted(
        score_threshold=options.score_threshold,
        max_detections=options.max_detections,
        categories=options.categories,
        precision=options.precision or model.settings.precision,
        device=options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu",
    )
    check(model, wanted)
    about = {"images": options.images, "model": hashlib.sha256(data).hexdigest()}
    settings = {**about, "precision": wanted.precision, **wanted.parameters()}
    if options.restart:
        for name in out.names():
            if name == PLAN or name.startswith(PARTS):
                out.remove(name)
    plan = planned(out, settings, images, listed=_listed(options), part_images=options.part_images)
    todo = []
    for number in range(len(plan.parts)):
        records = kept_part(out, plan, number)
        if records is None or (options.retry_failed and any("error" in record for record in records)):
            todo.append(number)
    _say(f"{sum(map(len, plan.parts))} images in {len(plan.parts)} parts, {len(todo)} to do ({engine})")
    if todo and engine == "ray":
        workers = options.workers or max(torch.cuda.device_count(), 1)
        done = predict_on_ray(
            plan, todo, images=options.images, out=options.out, model=model, wanted=wanted, workers=workers
        )
        _count(done, plan, todo)
    elif todo:
        _count(predict_here(plan, todo, images=images, out=out, model=model, wanted=wanted), plan, todo)
    return join(out, plan, model.categories())


def _listed(options: argparse.Namespace) -> list[Image] | None:
    if options.annotations is None:
        return None
    try:
        document = json.loads(options.annotations.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{options.annotations} cannot be read as JSON: {error}") from error
    return listed_images(document, str(options.annotations))


def _count(done: Iterator[int], plan: Plan, todo: Sequence[int]) -> None:
    begin = said = time.monotonic()
    images, of = 0, sum(len(plan.parts[number]) for number in todo)
    for number in done:
        images += len(plan.parts[number])
        now = time.monotonic()
        if now - said >= SAY_EVERY:
            said = now
            _say(f"{images} of {of} images, {images / (now - begin):.3g} images/s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. 0: done, unreadable images included; 2: a mistake, named; 1: not finished, go on later."""
    parser = argparse.ArgumentParser(
        prog="python -m offline.predict", description="Predict all images of a folder or bucket."
    )
    add = parser.add_argument
    add("--archive", default="build/maskx.mar", help="a .mar or maskx.pt (default: %(default)s)")
    add("--images", required=True, help="folder, or address such as s3://bucket/photos")
    add("--out", default="build/offline", help="folder or address (default: %(default)s)")
    add("--annotations", type=Path, help="COCO file: its images alone, with its ids")
    add("--score-threshold", type=float, help="(default: the model's; COCO's evaluation: 0.05)")
    add("--max-detections", type=int, help="of an image (default: the model's)")
    add("--categories", help="names or ids with commas between (default: all)")
    add("--precision", help="auto, float32, bfloat16, float16 (default: as in the archive)")
    add("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    told = "plain: in this process (default: Ray where it is installed)"
    add("--engine", choices=("auto", "ray", "plain"), default="auto", help=told)
    add("--workers", type=int, default=0, help="of Ray (default: one a GPU, or one)")
    add(
        "--part-images", type=int, default=32, help="images kept together, all or none (default: %(default)s)"
    )
    add("--retry-failed", action="store_true", help="do parts with errors again")
    add("--restart", action="store_true", help="forget what is done")
    options = parser.parse_args(arguments)
    try:
        if options.part_images < 1 or options.workers < 0:
            raise ValueError("--part-images must be 1 or more, --workers 0 or more")
        summary = run(options)
    except (DeviceFailed, RuntimeError, KeyboardInterrupt) as error:
        print(f"error: {error or 'stopped; the same command goes on'}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{summary.images} images, {summary.detections} detections, {summary.failed} images with an error: "
        f"{options.out.rstrip('/')}/results.json"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
