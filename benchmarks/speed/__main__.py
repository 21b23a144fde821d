"""The bench: our serving against torchvision's Mask R-CNN and against the machine; one run, one table.

    python -m benchmarks.speed [--quick] [--parts speed classes memory engines throughput]
    python -m benchmarks.speed --gpu     # speed and throughput on a GPU; without one a short form on the CPU

writes Markdown and JSON to benchmarks/results. The machine should do nothing else meanwhile.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import add_folder, add_network_options, described, numbers_of, parser_of, write_result
from benchmarks.engines.sections import engines
from benchmarks.engines.started import MORE_PEERS, PEERS
from benchmarks.speed.parts import speed
from benchmarks.speed.parts_memory import classes, memory
from benchmarks.speed.setting import CLASSES, Setting, say
from benchmarks.speed.throughput import throughput
from benchmarks.tables import Part, document, measured_on
from model.files import exit_status

PARTS: dict[str, Callable[[Setting], list[Part]]] = {
    "speed": speed,
    "classes": lambda setting: [classes(setting)],
    "memory": lambda setting: [memory(setting)],
    "throughput": throughput,
    "engines": engines,
}
ON_CPU, ON_GPU = ("speed", "classes", "memory", "engines"), ("speed", "throughput")
NO_GPU = "NO GPU HERE: every figure below is of the CPU, in a short form that only shows that the bench runs."


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parser().parse_args(arguments)
    with exit_status(RuntimeError) as status:  # what ended a side's process
        bench(options)
    return status.code


def bench(options: argparse.Namespace) -> None:
    """All parts that are asked for, printed and written. ValueError: a device that is not here; RuntimeError: a side
    failed, or its process was killed."""
    begin = time.monotonic()
    machine = described(options.device or ("auto" if options.gpu else "cpu"))
    on_gpu = machine["device"] != "cpu"
    pretended = options.gpu and not on_gpu
    if pretended:
        print(NO_GPU, flush=True)
    quick = options.quick or pretended
    native = machine["native_precisions"]
    setting = Setting(
        folder=options.folder.resolve(),
        device=machine["device"],
        precisions=tuple(options.precisions or (native[-1:] if pretended else native)),
        min_size=options.min_size,
        max_size=options.max_size,
        rounds=options.rounds or (1 if quick else 10 if on_gpu else 3),
        quick=quick,
        peers=None if options.peers is None else tuple(options.peers),
    )
    names = options.parts or (ON_GPU if options.gpu else ON_CPU)
    cores = f"{machine['processor']}, {machine['cores']} cores"
    say(f"{cores}, load {machine['load_before']}; {', '.join(names)}")
    parts = [part for name in names for part in PARTS[name](setting)]
    minutes = (time.monotonic() - begin) / 60
    title = NO_GPU if pretended else "maskx against torchvision's Mask R-CNN"
    text = document(title, heading(machine, setting, minutes), parts)
    out = setting.folder / "results" if pretended else options.out
    path = write(out, setting, machine, parts, text, minutes)
    print(text)
    say(f"{path} and its .json written, {minutes:.1f} minutes")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = parser_of("benchmarks.speed", __doc__, quick="one run of each, fewer sizes: to see that it works")
    add = made.add_argument
    add("--gpu", action="store_true", help="on a GPU; without one a short form on the CPU")
    add("--parts", nargs="+", choices=list(PARTS), help=f"(default: {' '.join(ON_CPU)})")
    told = f"engines to compare with, none for no name (default: {', '.join(PEERS)})"
    add("--peers", nargs="*", choices=[*PEERS, *MORE_PEERS], metavar="ENGINE", help=told)
    add("--precisions", nargs="+", help="(default: those that the device computes by itself)")
    add("--device", help="(default: cpu)")
    add("--rounds", type=int, help="timed runs of each slow thing (default: 3, on a GPU 10, --quick 1)")
    add_network_options(made)
    add_folder(made, "bench")
    return made


def heading(machine: dict[str, Any], setting: Setting, minutes: float) -> list[tuple[str, str]]:
    """What the result was measured on, line by line."""
    sides = f"shorter side {setting.min_size}, longer at most {setting.max_size}, both sides"
    lines = [*measured_on(machine, minutes), ("network", f"ResNet-50-FPN, {sides}")]
    if CLASSES in setting.prepared:
        about = setting.prepared[CLASSES]
        told = f"{about['proposals']} proposals, {about['pairs']} (proposal, class) pairs above "
        told += f"{about['score_threshold']}, {about['detections']} detections, "
        told += ", ".join(f"{100 * about[size]:.0f} % {size}" for size in ("small", "medium", "large"))
        told += f" by COCO's sizes, masks cover {100 * about['mask_share']:.0f} % of their boxes"
        lines.append(("calibration", told))
    lines.append(("runs", f"sides in turns, each in its own process; median of {setting.rounds} or more"))
    return lines


def write(
    folder: Path, setting: Setting, machine: dict[str, Any], parts: Sequence[Part], text: str, minutes: float
) -> Path:
    """Writes Markdown and JSON beside each other; returns the Markdown's path."""
    name = f"{setting.device.replace(':', '')}-{machine['date'][:10]}{'-quick' if setting.quick else ''}.md"
    keys = ("precisions", "min_size", "max_size", "rounds", "quick")
    told = {key: getattr(setting, key) for key in keys}
    numbers = numbers_of(machine, minutes, parts, setting=told, networks=setting.prepared)
    write_result(folder / name, text, numbers)
    return folder / name


if __name__ == "__main__":
    sys.exit(main())
