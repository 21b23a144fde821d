"""The load test: requests a second and latencies, the cost of being served, faults, hostile requests, a soak.

    python -m benchmarks.load [--only closed,open,overhead,faults,hostile] [--quick]
    python -m benchmarks.load --soak 20          # 20 minutes of saturation, alone
    python -m benchmarks.load --faults           # the faults alone
    python -m benchmarks.load --engine both      # TorchServe and the light server, turn about in one run

starts the servers on loopback itself and writes Markdown and JSON to benchmarks/results. Sections that are measured in
runs of their own on one day are joined in one report. The machine should do nothing else meanwhile.
"""

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.command import add_folder, add_network_options, described, parser_of, write_result
from benchmarks.load.faults import faults_numbers, faults_text
from benchmarks.load.hostile import hostile_numbers, hostile_text
from benchmarks.load.sections import (
    closed_numbers,
    closed_text,
    open_numbers,
    open_text,
    overhead_numbers,
    overhead_text,
)
from benchmarks.load.setting import LoadSetting, given_images, large_network, say, tiny_network
from benchmarks.load.soak import soak_numbers, soak_text
from benchmarks.pictures import of_coco_sizes
from benchmarks.tables import Part, document, measured_on
from model.files import exit_status
from server.processes import ENGINES, TORCHSERVE

IMAGES = 32
BOTH = "both"
LONGEST_SOAK = 60.0
"""Minutes."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report: what measures it and what shows it; `large`: whether ResNet-50 takes part."""

    title: str
    measure: Callable[[LoadSetting], dict[str, Any]]
    show: Callable[[dict[str, Any]], str]
    large: bool = False


def sections(soak_minutes: float) -> dict[str, Section]:
    """All of them, in the order of the report."""
    soak = partial(soak_numbers, minutes=soak_minutes)
    beside = "Served, beside the same images in one process"
    return {
        "overhead": Section(title=beside, measure=overhead_numbers, show=overhead_text, large=True),
        "closed": Section(title="Closed loop", measure=closed_numbers, show=closed_text, large=True),
        "open": Section(title="Open loop", measure=open_numbers, show=open_text, large=True),
        "soak": one_by_one("Soak", soak, soak_text),
        "faults": one_by_one("Faults under load", faults_numbers, faults_text),
        "hostile": one_by_one("Hostile requests", hostile_numbers, hostile_text),
    }


def one_by_one(
    title: str, measure: Callable[[LoadSetting], dict[str, Any]], show: Callable[[dict[str, Any]], str]
) -> Section:
    """A section that is measured on one server after the other, each with a heading of its own."""

    def measure_each(setting: LoadSetting) -> dict[str, Any]:
        return {engine: measure(replace(setting, engines=(engine,))) for engine in setting.engines}

    def show_each(numbers: dict[str, Any]) -> str:
        return "\n".join(f"### {engine}\n\n{show(found)}" for engine, found in numbers.items())

    return Section(title=title, measure=measure_each, show=show_each)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 measured, 2 it could not be."""
    options = parser().parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left running
    with exit_status() as status:
        known = sections(options.soak or 0.0)
        chosen = choose(options, known)
        machine = described("cpu")
        folder = options.folder.resolve()
        drawn = of_coco_sizes(folder / "images", IMAGES) if not options.images else ()
        images = drawn or given_images(options.images, IMAGES)
        networks = [tiny_network(options.tiny.resolve(), quick=options.quick)]
        if any(known[name].large for name in chosen) and not options.without_large:
            sizes = {"min_size": options.min_size, "max_size": options.max_size}
            networks.append(large_network(folder / "large", images[0], **sizes, quick=options.quick))
        setting = LoadSetting(
            folder=folder,
            images=images,
            networks=tuple(networks),
            quick=options.quick,
            engines=engines_of(options.engine),
        )
        path = options.out / f"load-{machine['date'][:10]}{'-quick' if options.quick else ''}.md"
        for name in chosen:
            say(f"section {name}, load {machine['load_before']}")
            begin = time.monotonic()
            numbers, minutes = known[name].measure(setting), (time.monotonic() - begin) / 60
            whence = "drawn, of COCO's sizes" if drawn else "given with --images"
            measured = {"numbers": numbers, "minutes": minutes, "images": whence}
            text = write(path, known, name, measured, machine)
        print(text)
        say(f"{path} and its .json written")
    return status.code


def parser() -> argparse.ArgumentParser:
    """The command line."""
    names = ",".join(name for name in sections(0.0) if name != "soak")
    made = parser_of("benchmarks.load", __doc__, quick="short turns: to see that it works")
    add = made.add_argument
    add("--only", metavar="SECTION,...", help=f"(default: {names})")
    add("--soak", type=float, metavar="MINUTES", help="the soak, alone or with --only")
    add("--faults", action="store_true", help="the faults, alone or with --only")
    told = "the server under test; both: turn about in one run (default: %(default)s)"
    add("--engine", choices=(*ENGINES, BOTH), default=TORCHSERVE, help=told)
    sent = f"folder; its first {IMAGES} are sent (default: drawn ones)"
    add("--images", type=Path, help=sent)
    trained = ROOT / "build" / "maskx.pt"
    add("--tiny", type=Path, default=trained, help="the trained maskx.pt (default: build/maskx.pt)")
    add("--without-large", action="store_true", help="leave ResNet-50 out")
    add_network_options(made, "ResNet-50")
    add_folder(made, "load")
    return made


def engines_of(asked: str) -> tuple[str, ...]:
    """The servers that --engine names."""
    return ENGINES if asked == BOTH else (asked,)


def choose(options: argparse.Namespace, known: dict[str, Section]) -> list[str]:
    """Names of the sections to measure, in the report's order. Raises ValueError for one that is not known."""
    asked = [name for name in (options.only or "").split(",") if name]
    if options.faults:
        asked.append("faults")
    if options.soak is not None:
        if not 0 < options.soak <= LONGEST_SOAK:
            allowed = f"above 0 and up to {LONGEST_SOAK:.0f} are allowed"
            raise ValueError(f"--soak is {options.soak:g} minutes; {allowed}")
        asked.append("soak")
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(f"--only {','.join(unknown)}: unknown; known are {', '.join(known)}")
    if "soak" in asked and options.soak is None:
        raise ValueError("the soak has no length; say --soak MINUTES")
    return [name for name in known if (name in asked if asked else name != "soak")]


def write(
    path: Path, known: dict[str, Section], name: str, measured: dict[str, Any], machine: dict[str, Any]
) -> str:
    """Puts one section into the day's report, in place of an earlier one of its name; the others stay."""
    file = path.with_suffix(".json")
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"sections": {}}
    content["machine"] = machine
    about = {"date": machine["date"], "load_before": machine["load_before"]}
    content["sections"][name] = about | measured
    text = report(content, known)
    write_result(path, text, content)
    return text


def report(content: dict[str, Any], known: dict[str, Section]) -> str:
    """The whole report in Markdown, of the sections that there are, in their order."""
    head = measured_on(content["machine"])
    head.append(("where", "client and server on the machine together, over loopback"))
    parts = []
    for name, section in known.items():
        if name in content["sections"]:
            entry = content["sections"][name]
            load = f"load before {entry['load_before']}, images {entry['images']}"
            told = f"Measured {entry['date']}, {entry['minutes']:.1f} minutes, {load}.\n\n"
            parts.append(Part(section.title, told + section.show(entry["numbers"]), entry["numbers"]))
    return document("maskx served: load, faults, hostile requests", head, parts)


if __name__ == "__main__":
    sys.exit(main())
