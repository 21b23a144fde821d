"""The bench: our serving against torchvision's Mask R-CNN and against the machine; one run, one table.

    python -m benchmarks.speed [--quick] [--parts speed classes memory] [--device cpu]

writes Markdown and JSON to benchmarks/results. The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.speed.parts import CLASSES, speed
from benchmarks.speed.parts_memory import classes, memory
from benchmarks.speed.setting import Setting, add_network_options, say
from benchmarks.tables import Part, document, measured_on
from benchmarks.worker import Remote

PARTS: dict[str, Callable[[Setting], list[Part]]] = {
    "speed": speed,
    "classes": lambda setting: [classes(setting)],
    "memory": lambda setting: [memory(setting)],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parser().parse_args(arguments)
    begin = time.monotonic()
    with Remote("bare") as bare:
        machine = bare.call("machine", device=options.device)
    setting = Setting(
        folder=options.folder.resolve(),
        device=options.device,
        precisions=tuple(options.precisions or machine["native_precisions"]),
        min_size=options.min_size,
        max_size=options.max_size,
        rounds=options.rounds or (1 if options.quick else 3),
        quick=options.quick,
    )
    say(f"{machine['processor']}, {machine['cores']} cores, load {machine['load_before']}; {options.parts}")
    parts = [part for name in options.parts for part in PARTS[name](setting)]
    minutes = (time.monotonic() - begin) / 60
    head = heading(machine, setting, minutes)
    text = document("maskx against torchvision's Mask R-CNN", head, parts)
    written = write(options.out, setting, machine, parts, text, minutes)
    print(text)
    say(f"{written} and its .json written, {minutes:.1f} minutes")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=(__doc__ or "").splitlines()[0]
    )
    made.add_argument(
        "--quick", action="store_true", help="one run of each, fewer sizes: to see that it works"
    )
    made.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="(default: all)")
    made.add_argument("--precisions", nargs="+", help="(default: those that the machine computes by itself)")
    made.add_argument(
        "--device", default="cpu", help="(default: %(default)s; for a GPU see benchmarks.gpu_check.bench)"
    )
    made.add_argument("--rounds", type=int, help="timed runs of each slow thing (default: 3, --quick 1)")
    add_network_options(made)
    made.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="for the result")
    return made


def heading(machine: dict[str, Any], setting: Setting, minutes: float) -> list[tuple[str, str]]:
    """What the result was measured on, line by line."""
    lines = measured_on(machine, minutes)
    lines.append(
        (
            "network",
            f"ResNet-50-FPN, shorter side {setting.min_size}, longer at most {setting.max_size}, both sides",
        )
    )
    if CLASSES in setting.prepared:
        about = setting.prepared[CLASSES]
        lines.append(
            (
                "calibration",
                f"{about['proposals']} proposals, {about['pairs']} (proposal, class) pairs above "
                f"{about['score_threshold']}, {about['detections']} detections, {100 * about['small']:.0f} % small, "
                f"{100 * about['medium']:.0f} % medium, {100 * about['large']:.0f} % large by COCO's sizes, "
                f"masks cover {100 * about['mask_share']:.0f} % of their boxes",
            )
        )
    lines.append(("runs", f"sides in turns, each in its own process; median of {setting.rounds} or more"))
    return lines


def write(
    folder: Path, setting: Setting, machine: dict[str, Any], parts: Sequence[Part], text: str, minutes: float
) -> Path:
    """Writes Markdown and JSON beside each other; returns the Markdown's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = (
        folder
        / f"{setting.device.replace(':', '')}-{machine['date'][:10]}{'-quick' if setting.quick else ''}.md"
    )
    content = {
        "machine": machine,
        "minutes": minutes,
        "setting": {
            "precisions": setting.precisions,
            "min_size": setting.min_size,
            "max_size": setting.max_size,
            "rounds": setting.rounds,
            "quick": setting.quick,
        },
        "networks": {str(count): about for count, about in setting.prepared.items()},
        "ratios": {name: value for part in parts for name, value in part.ratios.items()},
        "parts": {part.title: part.numbers for part in parts},
    }
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
