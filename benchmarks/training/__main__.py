"""The speed of training: our step beside torchvision's reference step, and the mask loss at 3 000 classes; one table.

    python -m benchmarks.training [--quick] [--parts shapes resnet50 masks] [--device cpu]

writes Markdown and JSON to benchmarks/results. The machine should do nothing else meanwhile.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import add_folder, described, numbers_of, parser_of, progress, write_result
from benchmarks.tables import Part, Times, document, measured_on, shown, speed_up, table, times_of
from benchmarks.worker import Remote, apart
from training.drawn.shapes import ShapesConfig, write_shapes

REFERENCE = "torchvision"
SAME = "maskx, as Mask R-CNN"
MASKX = "maskx, Mask^X"
MASKX_PRESET = "maskx, Mask^X, bfloat16"
FORMS: dict[str, dict[str, Any]] = {
    SAME: {"form": "mask_rcnn"},
    MASKX: {"form": "maskx"},
    MASKX_PRESET: {"form": "maskx", "precision": "bfloat16", "channels_last": True},
}
"""Our sides: the network of torchvision's own kind, ours of the paper, and that as the presets train it."""
WAYS = {
    "ours": "maskx: T and the channel of each RoI's class",
    "picked": "torchvision: all channels, each RoI's picked",
    "ignored": "official: all channels, -1 in the others'",
}

SIDES = "benchmarks.training.sides"
NETWORKS = {"shapes": "The preset's network", "resnet50": "ResNet-50-FPN"}

say = partial(progress, "bench")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of one network's part: side of the images, images a step, distinct batches, rounds of steps each."""

    side: int
    batch: int
    batches: int
    rounds: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class MaskSizes:
    """classes: without background. rois: of the mask loss. rounds of steps each. options: of `MaskLossSide`."""

    classes: tuple[int, ...]
    rois: int
    rounds: int
    steps: int
    options: Mapping[str, Any]


FULL: dict[str, Sizes] = {
    "shapes": Sizes(side=128, batch=16, batches=2, rounds=5, steps=4),
    "resnet50": Sizes(side=256, batch=2, batches=3, rounds=5, steps=2),
}
QUICK: dict[str, Sizes] = {
    "shapes": Sizes(side=64, batch=2, batches=1, rounds=1, steps=2),
    "resnet50": Sizes(side=64, batch=1, batches=1, rounds=1, steps=1),
}
FULL_MASKS = MaskSizes(classes=(80, 3000), rois=32, rounds=4, steps=2, options={})
_SMALL = {"width": 8, "cells": 3, "box_width": 8}
QUICK_MASKS = MaskSizes(classes=(4, 300), rois=3, rounds=1, steps=1, options=_SMALL)


def steps_part(network: str, sizes: Sizes, folder: Path, device: str, bfloat16: bool) -> Part:
    """Steps of every side in turns, each in a process of its own; its peak of memory."""
    data = folder / f"drawn-{sizes.side}"
    needed = sizes.batch * sizes.batches
    write_shapes(data, ShapesConfig(train=2 * needed + 8, val=1, size=sizes.side), workers=1)
    weights = str(folder / f"start-{network}-{sizes.side}.pt")
    apart(f"{SIDES}:write_start", data=str(data), network=network, side=sizes.side, out=weights)
    common: dict[str, Any] = {"data": str(data), "start": weights, "network": network, "device": device}
    common |= {"side": sizes.side, "batch": sizes.batch, "batches": sizes.batches}
    forms = {name: form for name, form in FORMS.items() if bfloat16 or name != MASKX_PRESET}
    with ExitStack() as stack:
        say(f"{network}: {REFERENCE}, {', '.join(forms)}")
        sides = {REFERENCE: stack.enter_context(Remote(f"{SIDES}:ReferenceStep", **common))}
        for name, form in forms.items():
            sides[name] = stack.enter_context(Remote(f"{SIDES}:OursStep", **common, **form))
        found = in_turns(sides, rounds=sizes.rounds, steps=sizes.steps, warm_up=sizes.batches)
        memory = {name: side.call("memory") for name, side in sides.items()}
    times = {name: Times(tuple(one["seconds"])) for name, one in found.items()}
    peak = "cuda_peak_mib" if device != "cpu" else "peak_mib"
    rows = []
    for name, of in times.items():
        speed = [f"{sizes.batch / of.median:.2f}", shown(of.median), f"{speed_up(times[REFERENCE], of):.2f}x"]
        mib, share = memory[name][peak], memory[name][peak] / memory[REFERENCE][peak]
        means = {key: statistics.mean(found[name][key]) for key in ("mask_rois", "loss")}
        work = [f"{means['mask_rois']:.0f}", f"{means['loss']:.2f}"]
        rows.append([name, *speed, f"{mib:.0f} MiB", f"{share:.2f}x", *work])
    headers = ("side", "images/s", "step", "speed", "peak memory", "of it", "mask RoIs a step", "mean loss")
    text = table(headers, rows) + f"\nMedian of {len(times[REFERENCE].seconds)} steps. "
    text += "Peak of a process, weights, PyTorch and images included.\n"
    numbers: dict[str, Any] = {"seconds": times_of(times), "memory": memory}
    numbers |= {key: {name: one[key] for name, one in found.items()} for key in ("mask_rois", "loss")}
    ratios = {
        f"{network}: {REFERENCE} / {name}, seconds of a step": speed_up(times[REFERENCE], times[name])
        for name in forms
    }
    title = f"{NETWORKS[network]}, {sizes.side} pixels, {sizes.batch} images a step, end to end"
    return Part(title, text, numbers, ratios)


def masks_part(sizes: MaskSizes, device: str) -> Part:
    """T and the mask loss by themselves, forward and backward, in the three ways at few and at many classes."""
    times: dict[str, dict[int, Times]] = {}
    above: dict[str, dict[int, float]] = {}
    of_device = "" if device == "cpu" else "cuda_"
    for classes in sizes.classes:
        say(f"mask loss at {classes} classes")
        with ExitStack() as stack:
            options = {"classes": classes, "rois": sizes.rois, "device": device, **sizes.options}
            sides = {
                way: stack.enter_context(Remote("benchmarks.training.masks:MaskLossSide", way=way, **options))
                for way in WAYS
            }
            found = in_turns(sides, rounds=sizes.rounds, steps=sizes.steps, warm_up=1)
            for way, side in sides.items():
                memory = side.call("memory")
                times.setdefault(way, {})[classes] = Times(tuple(found[way]["seconds"]))
                most, before = (memory[f"{of_device}{when}_mib"] for when in ("peak", "before"))
                above.setdefault(way, {})[classes] = most - before
    rows = [[name] for name in WAYS.values()]
    headers = ["way"]
    for classes in sizes.classes:
        headers += [f"{classes} classes", "memory"]
        for cells, way in zip(rows, WAYS, strict=True):
            cells += [shown(times[way][classes].median), f"{above[way][classes]:.0f} MiB"]
    many = sizes.classes[-1]
    ratios = {
        f"{many} classes: {way} / ours, seconds of the mask loss": speed_up(of[many], times["ours"][many])
        for way, of in times.items()
        if way != "ours"
    }
    text = table(headers, rows) + "\nMemory is the most above what features, targets and weights take. "
    text += "All three are one number, and have the same gradients.\n"
    numbers = {"seconds": {way: times_of(of) for way, of in times.items()}, "above_mib": above}
    title = f"T and the mask loss of {sizes.rois} RoIs by themselves, forward and backward, float32"
    return Part(title, text, numbers, ratios)


Steps = dict[str, list[float]]
"""What steps of a side found, by its name."""


def in_turns(sides: Mapping[str, Remote], *, rounds: int, steps: int, warm_up: int) -> dict[str, Steps]:
    """What `steps` of every side found, A B C, C B A, A B C ..., after `warm_up` steps of each that do not count."""
    found: dict[str, Steps] = {name: {} for name in sides}
    for side in sides.values():
        side.call("steps", count=warm_up)
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            for key, values in sides[name].call("steps", count=steps).items():
                found[name].setdefault(key, []).extend(values)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parser().parse_args(arguments)
    begin = time.monotonic()
    try:
        machine = described(options.device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    bfloat16 = "bfloat16" in machine["native_precisions"]
    say(f"{machine['processor']}, {machine['cores']} cores, load {machine['load_before']}; {options.parts}")
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sizes = QUICK if options.quick else FULL
    masks = QUICK_MASKS if options.quick else FULL_MASKS
    parts = [
        masks_part(masks, options.device)
        if name == "masks"
        else steps_part(name, sizes[name], folder, options.device, bfloat16)
        for name in options.parts
    ]
    minutes = (time.monotonic() - begin) / 60
    sides = (
        "the same drawn images in memory, weights at the start, SGD and learning rates; each in a process of its "
        "own, in turns; forward, backward and the optimiser are in a step; float32 where nothing else is said"
    )
    head = [*measured_on(machine, minutes), ("sides", sides)]
    text = document("Training: maskx beside torchvision's reference step", head, parts)
    path = options.out / f"training-{machine['date'][:10]}{'-quick' if options.quick else ''}.md"
    write_result(path, text, numbers_of(machine, minutes, parts))
    print(text)
    say(f"{path} and its .json written, {minutes:.1f} minutes")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    names = [*NETWORKS, "masks"]
    quick = "one short run of each, small: to see that it works"
    made = parser_of("benchmarks.training", __doc__, quick=quick)
    made.add_argument("--parts", nargs="+", choices=names, default=names, help="(default: all)")
    made.add_argument("--device", default="cpu", help="(default: %(default)s)")
    add_folder(made, "bench-training")
    return made


if __name__ == "__main__":
    sys.exit(main())
