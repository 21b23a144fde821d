"""What the command lines of the benchmarks share: options, progress, and the two files of a result."""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.tables import Part
from benchmarks.worker import apart
from model.files import write_whole

Json = Mapping[str, Any]
RESULTS = ROOT / "benchmarks" / "results"


def parser_of(module: str, text: str | None, *, quick: str = "", out: Path = RESULTS) -> ArgumentParser:
    """For `python -m MODULE`: the text's first line, --out, and --quick where it says what that does."""
    made = ArgumentParser(prog=f"python -m {module}", description=(text or "").splitlines()[0])
    if quick:
        made.add_argument("--quick", action="store_true", help=quick)
    told = f"folder of the result (default: {out.relative_to(ROOT)})"
    made.add_argument("--out", type=Path, default=out, help=told)
    return made


def add_network_options(made: ArgumentParser, of: str = "the bench's network") -> None:
    """The network's size."""
    add = made.add_argument
    add("--min-size", type=int, default=800, help=f"shorter side of {of} (default: %(default)s)")
    add("--max-size", type=int, default=1333, help="bound of its longer side (default: %(default)s)")


def add_folder(made: ArgumentParser, name: str) -> None:
    """Where things are made on the way."""
    path = ROOT / "build" / name
    made.add_argument("--folder", type=Path, default=path, help=f"for what is made on the way (build/{name})")


def described(device: str) -> dict[str, Any]:
    """The machine, by a process of its own, and its "device": for "auto" a GPU where there is one.

    Raises ValueError where the device cannot be used.
    """
    if device == "auto":
        try:
            return described("cuda")
        except ValueError:
            device = "cpu"
    try:
        return {**apart("benchmarks.machine:about", device=device), "device": device}
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"--device {device} cannot be used: {reason}") from error


def progress(bench: str, line: str) -> None:
    """A line beside the result."""
    print(f"{bench}: {line}", file=sys.stderr, flush=True)


def numbers_of(machine: Json, minutes: float, parts: Sequence[Part], **more: Any) -> dict[str, Any]:
    """The JSON beside a document of parts."""
    ratios = {name: value for part in parts for name, value in part.ratios.items()}
    found = {part.title: part.numbers for part in parts}
    return {"machine": machine, "minutes": minutes, **more, "ratios": ratios, "parts": found}


def write_result(path: Path, text: str, content: Json) -> None:
    """The Markdown `path` and its .json."""
    write_whole(path, text)
    write_whole(path.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
