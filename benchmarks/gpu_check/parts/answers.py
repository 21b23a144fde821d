"""A trained network served right: the answers of every precision beside the CPU's in float32, and what hides errors
from a random network: images without objects, sizes never seen, batches of mixed sizes and wishes."""

import io
import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.gpu_check.parts.asking import Asked
from benchmarks.gpu_check.parts.comparing import HEADERS, Compared, compare, detections_of
from benchmarks.gpu_check.setting import NO_TIME, CheckSetting, Clock, Keep, each, measured, say
from benchmarks.tables import Part, shown, table

BATCH = 8
PIXELS = 300_000
"""Of the images of sizes never seen: all the same, so that their times can be compared."""
WIDEST = 2.6
"""Width / height at most; its inverse is the least."""

Numbers = dict[str, Any]


def measure(setting: CheckSetting, seconds: float, keep: Keep) -> Part:
    """The CPU in float32 first, then each precision on the device, that of serving first."""
    clock = Clock(seconds)
    images = [path.read_bytes() for path in sorted((setting.shapes / "val").glob("*.png"))]
    images = images[: 8 if setting.short else 64]
    reference = Asked(setting.trained_path, "cpu", "float32")
    expected = answers_to(reference, images)
    found: dict[str, Numbers] = {}

    def work(precision: str) -> None:
        say(f"answers in {precision}")
        found[precision] = of_precision(setting, precision, images, expected)

    def failed(precision: str, why: str) -> None:
        found[precision] = {"failed": why}

    return each(
        setting.best_first(), clock, 8, work, failed, keep, lambda: shown_part(setting, expected, found)
    )


def of_precision(
    setting: CheckSetting, precision: str, images: Sequence[bytes], expected: Sequence[list[Numbers]]
) -> Numbers:
    """Everything that is asked in one precision."""
    asked = Asked(setting.trained_path, setting.device, precision)
    numbers: Numbers = {}
    empty = empty_images()
    bodies = [body for image in empty for body in asked.ask([image], score_threshold=0.9)]
    bodies += asked.ask(empty, score_threshold=1.0) + asked.ask(images[:BATCH], score_threshold=1.0)
    numbers["nothing found"] = {
        "asked": len(bodies),
        "with detections": sum(bool(detections_of(body)) for body in bodies if body is not None),
    }
    numbers["beside the CPU"] = asdict(compare(expected, answers_to(asked, images)))
    times = [asked.timed([image]) for image in of_sizes(images, 6 if setting.short else 50)]
    numbers["sizes"] = spread(times) | {"place of the slowest": times.index(max(times)) + 1}
    numbers["mixed"] = mixed(asked, images, 2 if setting.short else 8)
    # Nothing that came between has changed it.
    numbers["again"] = asdict(compare(expected, answers_to(asked, images)))
    return numbers | {"asked": asked.asked, "not 200": asked.not_200, "said": asked.said}


def spread(times: Sequence[float]) -> Numbers:
    """What is told of images of sizes never seen: how many, and how far the slowest is from the median."""
    median, slowest = statistics.median(times), max(times)
    return {"count": len(times), "median": median, "slowest": slowest, "ratio": slowest / median}


def answers_to(asked: Asked, images: Sequence[bytes]) -> list[list[Numbers]]:
    """Detections of each image, in batches; of one that was not answered 200, none."""
    found: list[list[Numbers]] = []
    for start in range(0, len(images), BATCH):
        bodies = asked.ask(images[start : start + BATCH])
        found += [[] if body is None else detections_of(body) for body in bodies]
    return found


def empty_images() -> list[bytes]:
    """Images in which a trained network should be sure of nothing: black, white, one colour, noise; of two sizes."""
    noise = np.random.default_rng(0).integers(0, 256, (150, 170, 3), dtype=np.uint8)
    flat = [np.full((128, 128, 3), value, dtype=np.uint8) for value in (0, 128, 255)]
    return [jpeg(one) for one in [*flat, np.zeros((97, 211, 3), dtype=np.uint8), noise]]


def jpeg(pixels: np.ndarray) -> bytes:
    """The image as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()


def sizes(count: int) -> list[tuple[int, int]]:
    """Width and height of `count` images of about PIXELS pixels, no two alike, in a mixed order."""
    ratios = np.exp(np.linspace(-np.log(WIDEST), np.log(WIDEST), count))
    np.random.default_rng(0).shuffle(ratios)
    return [(round((PIXELS * ratio) ** 0.5), round((PIXELS / ratio) ** 0.5)) for ratio in ratios]


def of_sizes(images: Sequence[bytes], count: int) -> list[bytes]:
    """The images in turns, each brought to one of `sizes`."""
    found = []
    for size, data in zip(sizes(count), itertools.cycle(images), strict=False):
        with Image.open(io.BytesIO(data)) as image:
            found.append(jpeg(np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))))
    return found


def mixed(asked: Asked, images: Sequence[bytes], batches: int) -> Numbers:
    """Batches of mixed sizes and wishes, with empty images among them; each answer beside the one it gets alone."""
    together: list[list[Numbers]] = []
    alone: list[list[Numbers]] = []
    wishes: list[dict[str, Any]] = [
        {},
        {"mask_format": "none"},
        {"score_threshold": 0.5},
        {"max_detections": 3},
    ]
    wishes += [{"score_threshold": 1.0}, {"mask_format": "polygon"}, {"mask_format": "png"}]
    wishes.append({"score_threshold": 0.0, "max_detections": 1000})
    varied = of_sizes(images, 2 * BATCH)
    unlike = 0
    for number in range(batches):
        first, *others = (images[(number + i) % len(images)] for i in range(3))
        pool = [first, empty_images()[number % 5], *varied[number % BATCH : number % BATCH + 4], *others]
        plain = {"score_threshold": 0.05, "max_detections": 100}
        requests = [
            {"body": image} | plain | wishes[(i + number) % len(wishes)] for i, image in enumerate(pool)
        ]
        bodies = asked.answer(requests)
        singles = [asked.answer([one])[0] for one in requests]
        for body, single in zip(bodies, singles, strict=True):
            unlike += (body is None) != (single is None)
            if body is not None and single is not None:
                together.append(detections_of(body))
                alone.append(detections_of(single))
    return {"answers": batches * BATCH, "unlike": unlike, **asdict(compare(alone, together))}


def shown_part(
    setting: CheckSetting, expected: Sequence[Sequence[Numbers]], found: dict[str, Numbers]
) -> Part:
    """The tables of what there is so far."""
    good = {name: one for name, one in found.items() if "failed" not in one}
    beside, others, statuses = [], [], []
    for name, one in found.items():
        if "failed" in one:
            statuses.append((name, "-", one["failed"]))
            continue
        beside.append((name, *Compared(**one["beside the CPU"]).cells()))
        beside.append((f"{name}, at the end", *Compared(**one["again"]).cells()))
        of_mixed = {key: value for key, value in one["mixed"].items() if key not in ("answers", "unlike")}
        beside.append((f"{name}, mixed batches beside the same alone", *Compared(**of_mixed).cells()))
        nothing, size = one["nothing found"], one["sizes"]
        seen = f"{nothing['with detections']} of {nothing['asked']}"
        cells = [seen, str(size["count"]), shown(size["median"])]
        cells += [f"{shown(size['slowest'])} (number {size['place of the slowest']})", f"{size['ratio']:.2f}"]
        others.append((name, *cells))
        said = "; ".join(one["said"]).replace("|", "/")
        statuses.append((name, f"{one['not 200']} of {one['asked']}", said or "-"))
    sure = sum(one["score"] >= 0.3 for image in expected for one in image)
    text = table(("device", *HEADERS), beside) if beside else ""
    text += (
        f"\nFirst the CPU in float32: {len(expected)} images of the drawn set, {sure} detections of score 0.3 or more; "
        "a matched one has the same category and a box of IoU 0.7 or more.\n\n"
    )
    if not sure:
        text += "THE NETWORK FINDS NOTHING: it was not trained for long enough, and nothing is compared.\n\n"
    if others:
        headers = ("", "with detections where nothing is", "sizes never seen", "median", "slowest", "ratio")
        text += table(headers, others) + "\n"
    text += table(("", "not 200", "what was said"), statuses)
    bars = {"unseen sizes": max(one["sizes"]["ratio"] for one in good.values())} if good else {}
    # A precision that cannot be loaded or run answers nothing; one that no time was left for is not judged.
    broken = sum(one.get("failed", NO_TIME) != NO_TIME for one in found.values())
    asked = sum(one["asked"] for one in good.values())
    not_200 = sum(one["not 200"] for one in good.values()) + broken
    numbers = measured(bars, asked=asked, not_200=not_200, precisions=json.loads(json.dumps(found)))
    title = f"Trained network on {setting.device}: answers, nothing found, sizes, mixed batches"
    return Part(title, text, numbers)
