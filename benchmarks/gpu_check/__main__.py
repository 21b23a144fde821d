"""The command line of `make gpu-check`."""

import argparse
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.command import RESULTS, add_folder, described, parser_of
from benchmarks.gpu_check.bars import MISSED, verdicts
from benchmarks.gpu_check.plan import CPU_MINUTES, MINUTES, PARTS, PREPARATIONS, Planned, grant, worth
from benchmarks.gpu_check.report import NO_GPU, Report
from benchmarks.gpu_check.running import (
    DONE,
    LEFT_OUT,
    Outcome,
    Start,
    run_together,
    start_part,
    stop_servers,
)
from benchmarks.gpu_check.setting import CheckSetting, say

CLOSING = 10.0
"""Seconds kept back for a part that is ended at its limit and has a server to stop."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every part that was begun came to its end; 1: one did not, or a bar was missed; 2: a mistake, named."""
    options = parser().parse_args(arguments)
    begin = time.monotonic()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process is left running
    try:
        machine = described(options.device)
        setting = setting_of(options, machine)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not setting.on_gpu:
        print(NO_GPU, flush=True)
    out = options.out or (RESULTS if setting.on_gpu else ROOT / "build" / "gpu-check" / "results")
    minutes = options.minutes or (MINUTES if setting.on_gpu else CPU_MINUTES)
    report = Report(out.resolve(), setting, machine, minutes)
    outcomes = check(setting, report, minutes, begin, options.only)
    print(report.write(outcomes, spent=time.monotonic() - begin))
    trace = Path(setting.folder) / "trace.json.gz"
    if options.keep_trace and trace.is_file():
        shutil.copyfile(trace, report.path.with_suffix(".trace.json.gz"))
    say(f"{report.path} and its .json written, {(time.monotonic() - begin) / 60:.1f} minutes")
    numbers = [one.part.numbers for one in outcomes if one.part is not None]
    missed = MISSED in verdicts(numbers, on_gpu=setting.on_gpu).values()
    return 1 if missed or any(one.state not in (DONE, LEFT_OUT) for one in outcomes) else 0


def check(
    setting: CheckSetting,
    report: Report,
    minutes: float,
    begin: float,
    only: Sequence[str] = (),
    start: Start = start_part,
    parts: Sequence[Planned] = PARTS,
    preparations: Sequence[Planned] = PREPARATIONS,
) -> list[Outcome]:
    """Preparations side by side, then part after part; the report is written whenever there is news.

    Args:
        minutes: for all of it, from `begin` (of time.monotonic) on.
        only: names of parts; empty for all but those that run apart.
        start: starts a part's process.
    """

    def left() -> float:
        return minutes * 60 - CLOSING - (time.monotonic() - begin)

    outcomes: list[Outcome] = []

    def news(running: Sequence[Outcome]) -> None:
        report.write([*outcomes, *running], spent=time.monotonic() - begin)

    chosen = [one for one in parts if (one.name in only if only else not one.apart)]
    needed = {name for one in chosen for name in one.needs}
    planned = [one for one in preparations if one.name in needed]
    told = worth(minutes, chosen, [one for one in parts if not one.apart])
    outcomes += _run(planned, setting, told, left, news, start)
    prepared = {one.planned.name for one in outcomes if one.state == DONE}
    for part in chosen:
        lacking = [name for name in part.needs if name not in prepared]
        if lacking:
            outcomes.append(Outcome(planned=part, state=LEFT_OUT, note=f"without {', '.join(lacking)}"))
        else:
            outcomes += _run([part], setting, told, left, news, start)
        news([])
    return outcomes


def _run(
    planned: Sequence[Planned],
    setting: CheckSetting,
    minutes: float,
    left: Callable[[], float],
    news: Callable[[Sequence[Outcome]], None],
    start: Start,
) -> list[Outcome]:
    """Parts side by side, or left out where the time does not suffice."""
    given, found = [], []
    for part in planned:
        granted = grant(part, minutes=minutes, left=left())
        if granted is None:
            note = f"{max(left(), 0):.0f} s were left; it needs {part.least:.0f}"
            found.append(Outcome(planned=part, state=LEFT_OUT, note=note))
        else:
            say(f"{part.title} (up to {granted.seconds:.0f} s)")
            given.append((part, granted))
    if not given:
        return found
    try:
        ran = run_together(given, setting, news, start)
    finally:
        stop_servers(Path(setting.folder))
    for one in ran:
        say(f"{one.planned.title}: {one.state}, {one.seconds:.0f} s {one.note}")
    return found + ran


def setting_of(options: argparse.Namespace, machine: dict[str, Any]) -> CheckSetting:
    """What the command line means on this machine. Raises ValueError where a file is missing or a name unknown."""
    for flag, path in (("--checkpoint", options.checkpoint), ("--maskx-pt", options.maskx_pt)):
        if path is not None and not path.is_file():
            raise ValueError(f"{flag} {path}: no such file; leave it out to have a network trained here")
    known = [part.name for part in PARTS]
    unknown = [name for name in options.only if name not in known]
    if unknown:
        raise ValueError(f"--only {' '.join(unknown)}: unknown; parts are {', '.join(known)}")
    if options.minutes is not None and not 0 < options.minutes <= 60:
        raise ValueError(f"--minutes is {options.minutes:g}; above 0 and up to 60 are allowed")
    on_gpu = machine["device"] != "cpu"
    folder = options.folder.resolve()
    for name in ("trained", "large", "parts", "served", "same"):  # nothing is taken from an earlier run
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "trace.json.gz").unlink(missing_ok=True)
    trained, checkpoint = (
        "" if path is None else str(path.resolve()) for path in (options.maskx_pt, options.checkpoint)
    )
    return CheckSetting(
        folder=str(folder),
        device=machine["device"],
        precisions=tuple(machine["native_precisions"]),
        short=options.short or not on_gpu,
        trained=trained,
        checkpoint=checkpoint,
        min_size=options.min_size or (800 if on_gpu else 160),
        max_size=options.max_size or (1333 if on_gpu else 256),
        workers=tuple(options.workers),
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = parser_of(
        "benchmarks.gpu_check",
        "Whether all of it works on a GPU, and how fast; without one a short form on the CPU.",
    )
    add = made.add_argument
    told = f"for all of it (default: {MINUTES:g}, on a CPU {CPU_MINUTES:g})"
    add("--minutes", type=float, help=told)
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    told = "of a trained network (default: a small one is trained here)"
    add("--checkpoint", type=Path, help=told)
    told = "the same, exported (default: the checkpoint is exported)"
    add("--maskx-pt", type=Path, help=told)
    add("--only", nargs="+", default=[], metavar="PART", help="these parts alone")
    told = "TorchServe's workers, a server for each number; 0: as it chooses (default)"
    add("--workers", type=int, nargs="+", default=[0], help=told)
    add("--short", action="store_true", help="few of everything, as on a CPU")
    told = "the engine's trace beside the report, for a browser"
    add("--keep-trace", action="store_true", help=told)
    add("--min-size", type=int, help="of the bench's network (default: 800, on a CPU 160)")
    add("--max-size", type=int, help="of the bench's network (default: 1333, on a CPU 256)")
    add_folder(made, "gpu-check")
    made.set_defaults(out=None)
    return made


if __name__ == "__main__":
    sys.exit(main())
